//! The seam between enrolment and the kernel side: what [`Kernel`] does for one pod.
//!
//! It exists so that the order of enrolment can be tested without a kernel; `Kernel` is the one
//! real implementation, and its documentation holds for these methods.

use std::os::fd::BorrowedFd;

use crate::kernel::{
    Expected, Fault, Guard, Kernel, KernelError, KnownPod, ListenerSlot, PodKernel, Skips,
};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// What the kernel side does for pods; see [`Kernel`].
#[expect(
    missing_docs,
    reason = "each method is the one of the same name of `Kernel`, which is documented there"
)]
pub trait Datapath: Send + Sync {
    fn add_pod(&self, pod: &PodKernel<'_>) -> Result<()>;
    fn set_enrolled(&self, cookie: u64, enrolled: bool) -> Result<()>;
    fn set_guard(&self, cookie: u64, guard: Guard) -> Result<()>;
    fn remove_pod(&self, cookie: u64, slot: u32) -> Result<()>;
    fn set_skips(&self, cookie: u64, skips: &Skips) -> Result<()>;
    fn set_listener(&self, slot: u32, which: ListenerSlot, listener: BorrowedFd<'_>) -> Result<()>;
    fn clear_listeners(&self, slot: u32) -> Result<()>;
    fn listener_cookie(&self, slot: u32, which: ListenerSlot) -> Result<Option<u64>>;
    fn tag_lent(&self, socket: BorrowedFd<'_>) -> Result<()>;
    fn attach_outbound(
        &self,
        uid: &str,
        slot: u32,
        cookie: u64,
        netns: BorrowedFd<'_>,
    ) -> Result<()>;
    fn attach_inbound(&self, uid: &str, slot: u32, cookie: u64, ifindex: u32) -> Result<()>;
    fn detach(&self, uid: &str) -> Result<()>;
    fn verify(&self, expected: &Expected<'_>) -> Result<Vec<Fault>>;
    fn repair_cgroup_links(&self) -> Result<()>;
    fn known_pods(&self) -> Result<Vec<KnownPod>>;
    fn pinned_pods(&self) -> Result<Vec<String>>;
}

impl Datapath for Kernel {
    fn add_pod(&self, pod: &PodKernel<'_>) -> Result<()> {
        self.add_pod(pod)
    }

    fn set_enrolled(&self, cookie: u64, enrolled: bool) -> Result<()> {
        self.set_enrolled(cookie, enrolled)
    }

    fn set_guard(&self, cookie: u64, guard: Guard) -> Result<()> {
        self.set_guard(cookie, guard)
    }

    fn remove_pod(&self, cookie: u64, slot: u32) -> Result<()> {
        self.remove_pod(cookie, slot)
    }

    fn set_skips(&self, cookie: u64, skips: &Skips) -> Result<()> {
        self.set_skips(cookie, skips)
    }

    fn set_listener(&self, slot: u32, which: ListenerSlot, listener: BorrowedFd<'_>) -> Result<()> {
        self.set_listener(slot, which, listener)
    }

    fn clear_listeners(&self, slot: u32) -> Result<()> {
        self.clear_listeners(slot)
    }

    fn listener_cookie(&self, slot: u32, which: ListenerSlot) -> Result<Option<u64>> {
        self.listener_cookie(slot, which)
    }

    fn tag_lent(&self, socket: BorrowedFd<'_>) -> Result<()> {
        self.tag_lent(socket)
    }

    fn attach_outbound(
        &self,
        uid: &str,
        slot: u32,
        cookie: u64,
        netns: BorrowedFd<'_>,
    ) -> Result<()> {
        self.attach_outbound(uid, slot, cookie, netns)
    }

    fn attach_inbound(&self, uid: &str, slot: u32, cookie: u64, ifindex: u32) -> Result<()> {
        self.attach_inbound(uid, slot, cookie, ifindex)
    }

    fn detach(&self, uid: &str) -> Result<()> {
        self.detach(uid)
    }

    fn verify(&self, expected: &Expected<'_>) -> Result<Vec<Fault>> {
        self.verify(expected)
    }

    fn repair_cgroup_links(&self) -> Result<()> {
        self.repair_cgroup_links()
    }

    fn known_pods(&self) -> Result<Vec<KnownPod>> {
        self.known_pods()
    }

    fn pinned_pods(&self) -> Result<Vec<String>> {
        self.pinned_pods()
    }
}
