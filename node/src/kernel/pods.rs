//! stub
/// A pod that the kernel side knows from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Cookie of the pod's network namespace.
    pub cookie: u64,
    /// The pod's slot.
    pub slot: u32,
    /// Whether its connections are captured.
    pub enrolled: bool,
}
