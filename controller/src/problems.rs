//! What is wrong with the manifests now: in the log once, in metrics and on the admin server.

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use serde::Serialize;
use tracing::{error, info, warn};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was written has no effect.
    Error,
    /// Something is taken differently from what the author may think.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, if one can be named.
    pub file: Option<PathBuf>,
    /// Line and column, from 1.
    pub at: Option<(usize, usize)>,
    /// How bad it is.
    pub severity: Severity,
    /// The object, if it is known.
    pub object: Option<String>,
    /// What is wrong.
    pub message: String,
}

/// The problems that exist now. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Problems(Arc<ArcSwap<BTreeSet<Problem>>>);

impl Severity {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some((line, column)) = self.at {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}: ", self.severity.as_str())?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl Problems {
    /// The present problems.
    pub fn current(&self) -> Arc<BTreeSet<Problem>> {
        self.0.load_full()
    }

    /// How many there are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let problems = self.0.load();
        let same = problems.iter().filter(|one| one.severity == severity);
        same.count()
    }

    /// Replaces the problems, and logs those that are new or gone.
    pub fn replace(&self, problems: impl IntoIterator<Item = Problem>) {
        let next: BTreeSet<_> = problems.into_iter().collect();
        let previous = self.0.swap(Arc::new(next.clone()));
        for problem in next.difference(&previous) {
            match problem.severity {
                Severity::Error => error!(%problem, "manifest problem"),
                Severity::Warning => warn!(%problem, "manifest problem"),
            }
        }
        for problem in previous.difference(&next) {
            info!(%problem, "manifest problem is gone");
        }
    }
}
