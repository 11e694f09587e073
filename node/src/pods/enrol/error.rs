//! Why a pod cannot be enrolled.

use std::{io, path::PathBuf};

use crate::{
    kernel::{Fault, KernelError},
    pods::{inside::InsideError, netns::NetnsError, sockets::Kind},
};

/// Why a pod cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Something inside the pod failed.
    #[error(transparent)]
    Inside(#[from] InsideError),
    /// The kernel side failed.
    #[error("{step}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: KernelError,
    },
    /// A listener cannot be finished.
    #[error("listen in the pod ({})", kind.name())]
    Listen {
        /// Which one.
        kind: Kind,
        /// Why not.
        source: io::Error,
    },
    /// The kernel does not say what it was told.
    #[error("the kernel side is incomplete after enrolment: {0:?}")]
    Incomplete(Vec<Fault>),
    /// The pod was deleted meanwhile.
    #[error("called off: the pod was deleted meanwhile")]
    CalledOff,
    /// The namespace at the path is another one than before.
    #[error("the pod's network namespace at {0:?} is gone")]
    Gone(PathBuf),
    /// Too many pods.
    #[error("no slot is free: this node meshes {0} pods, which is the limit")]
    Full(u32),
}

impl EnrolError {
    /// Name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Inside(InsideError::Proof(_)) => "proof",
            Self::Inside(InsideError::Listen { .. }) | Self::Listen { .. } => "listen",
            Self::Inside(InsideError::Route(_)) => "route",
            Self::Inside(
                InsideError::Netns(_) | InsideError::Socket { .. } | InsideError::Attach { .. },
            ) => "inside",
            Self::Kernel { .. } => "kernel",
            Self::Incomplete(_) => "incomplete",
            Self::CalledOff => "called_off",
            Self::Gone(_) => "gone",
            Self::Full(_) => "full",
        }
    }
}

impl EnrolError {
    /// Whether trying again is in vain: a pod on the node's network never gets one of its own.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Inside(InsideError::Netns(NetnsError::Host(_))))
    }
}

/// Names the step at which the kernel side failed.
pub(super) fn kernel(step: &'static str) -> impl FnOnce(KernelError) -> EnrolError {
    move |source| EnrolError::Kernel { step, source }
}
