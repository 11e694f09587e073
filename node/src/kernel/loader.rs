//! stub: signatures only for now
#![expect(unused_variables, missing_docs, clippy::unimplemented, reason="stub")]
use std::os::fd::BorrowedFd;
use super::*;

/// The kernel side of this node. Shared by `Arc`; all calls take `&self`.
pub struct Kernel;

impl Kernel {
    /// Loads the programs and maps, or adopts what is pinned; attaches to the cgroup.
    pub fn open(config: KernelConfig) -> Result<Self, KernelError> { unimplemented!() }
    /// Enters (or replaces) the pod, guard as given. Keeps `enrolled` as it was (new: off).
    pub fn add_pod(&self, pod: &PodKernel<'_>) -> Result<(), KernelError> { unimplemented!() }
    /// Switches capture and inbound steering of the pod.
    pub fn set_enrolled(&self, cookie: u64, enrolled: bool) -> Result<(), KernelError> { unimplemented!() }
    pub fn set_guard(&self, cookie: u64, guard: Guard) -> Result<(), KernelError> { unimplemented!() }
    /// Forgets the pod: entry, skips, cgroup, listeners. Does not detach. Idempotent.
    pub fn remove_pod(&self, cookie: u64, slot: u32) -> Result<(), KernelError> { unimplemented!() }
    /// Replaces what is not captured for the pod, its own addresses included.
    pub fn set_skips(&self, cookie: u64, skips: &Skips) -> Result<(), KernelError> { unimplemented!() }
    pub fn set_listener(&self, slot: u32, which: ListenerSlot, listener: BorrowedFd<'_>) -> Result<(), KernelError> { unimplemented!() }
    pub fn clear_listeners(&self, slot: u32) -> Result<(), KernelError> { unimplemented!() }
    /// Socket cookie of the listener that is in the slot.
    pub fn listener_cookie(&self, slot: u32, which: ListenerSlot) -> Result<Option<u64>, KernelError> { unimplemented!() }
    /// Tags the socket as lent; sockets accepted from it inherit that. Before listen() for listeners.
    pub fn tag_lent(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> { unimplemented!() }
    /// Attaches outbound steering to the network namespace and pins the link; idempotent.
    pub fn attach_outbound(&self, uid: &str, slot: u32, cookie: u64, netns: BorrowedFd<'_>) -> Result<(), KernelError> { unimplemented!() }
    /// Attaches inbound steering to the interface and pins the link; idempotent. Call it from a thread in the pod's netns.
    pub fn attach_inbound(&self, uid: &str, slot: u32, cookie: u64, ifindex: u32) -> Result<(), KernelError> { unimplemented!() }
    /// Detaches everything of the pod and removes its pins. Idempotent; works when the pod is gone.
    pub fn detach(&self, uid: &str) -> Result<(), KernelError> { unimplemented!() }
    /// What is not as it should be; the cgroup links are looked at with every pod.
    pub fn verify(&self, expected: &Expected<'_>) -> Result<Vec<Fault>, KernelError> { unimplemented!() }
    /// Re-attaches the cgroup programs where they are gone.
    pub fn repair_cgroup_links(&self) -> Result<(), KernelError> { unimplemented!() }
    /// Pods in the map, for adoption after a restart.
    pub fn known_pods(&self) -> Result<Vec<KnownPod>, KernelError> { unimplemented!() }
    /// Uids of the pods that have pinned links, for adoption and clean-up after a restart.
    pub fn pinned_pods(&self) -> Result<Vec<String>, KernelError> { unimplemented!() }
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, KernelError> { unimplemented!() }
    /// The guard's reports. One reader at a time. Needs a tokio runtime.
    pub fn events(&self) -> Result<Events, KernelError> { unimplemented!() }
}

/// Removes all pins (and so detaches everything) below the configured directory.
pub fn cleanup(config: &KernelConfig) -> Result<(), KernelError> { unimplemented!() }
