//! stub
use super::KernelConfig;
/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Ok,
    /// It is not there, and something works less well.
    Warn,
    /// It is not there, and Weft does not work.
    Missing,
}

/// One thing that Weft needs or likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do, empty when nothing is to be done.
    pub remedy: String,
}

/// Looks at everything that the kernel side needs.
pub fn preflight(_config: &KernelConfig) -> Vec<Check> {
    unimplemented!()
}
