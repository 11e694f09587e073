//! stub
use std::net::SocketAddr;
use super::{KernelError, Reason};

/// What the guard met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardEvent {
    /// Cookie of the enrolled pod's network namespace.
    pub cookie: u64,
    /// Slot of the pod.
    pub slot: u32,
    /// Whether a network namespace inside the pod sent it.
    pub nested: bool,
    /// Why.
    pub reason: Reason,
    /// Whether it was dropped; otherwise the guard only audits.
    pub dropped: bool,
    /// Where from.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// Interface it was about to leave by.
    pub ifindex: u32,
}

/// What the guard reports, as it happens.
pub struct Events;
impl Events {
    /// Waits for the next event. Cancel safe. Ends with an error only.
    pub async fn next(&mut self) -> Result<GuardEvent, KernelError> { std::future::pending().await }
}
