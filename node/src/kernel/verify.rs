//! Compares what is attached and entered with what should be, for the reconciler.

use weft_common::PodFlags;

use super::{Kernel, KernelError, ListenerSlot};

/// What should be there for one pod.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// Unique id.
    pub uid: &'a str,
    /// Cookie of the pod's network namespace.
    pub cookie: u64,
    /// The pod's slot.
    pub slot: u32,
    /// Whether its connections should be captured.
    pub enrolled: bool,
    /// Listeners that should be in their places, with their `SO_COOKIE`.
    pub listeners: &'a [(ListenerSlot, u64)],
    /// Interfaces on which inbound steering should be attached.
    pub ifindexes: &'a [u32],
}

/// Something that is not as it should be, with the call that repairs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A program is not attached to the cgroup: [`Kernel::repair_cgroup_links`].
    CgroupLink(&'static str),
    /// The pod is not in the map: [`Kernel::add_pod`].
    PodMissing,
    /// The pod is in the map with another slot or capture switched otherwise: [`Kernel::add_pod`]
    /// and [`Kernel::set_enrolled`].
    PodDiffers,
    /// The place is empty or has another listener: [`Kernel::set_listener`].
    Listener(ListenerSlot),
    /// Outbound steering is not attached: [`Kernel::attach_outbound`].
    OutboundLink,
    /// Inbound steering is not attached to the interface: [`Kernel::attach_inbound`].
    InboundLink(u32),
}

impl Kernel {
    /// Says what is not as it should be for the pod. May be called from any namespace.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn verify(&self, expected: &Expected<'_>) -> Result<Vec<Fault>, KernelError> {
        let mut faults = self.verify_cgroup()?;
        let Expected {
            uid, cookie, slot, ..
        } = *expected;
        {
            let maps = self.maps.lock();
            match maps.pod(cookie)? {
                None => faults.push(Fault::PodMissing),
                Some(entry) => {
                    let enrolled = entry.flags().contains(PodFlags::ENROLLED);
                    if (entry.slot(), enrolled) != (slot, expected.enrolled) {
                        faults.push(Fault::PodDiffers);
                    }
                }
            }
            for (which, listener) in expected.listeners {
                if maps.listener(slot, *which)? != Some(*listener) {
                    faults.push(Fault::Listener(*which));
                }
            }
        }
        if !self.outbound_link(uid, slot, cookie)?.is_attached()? {
            faults.push(Fault::OutboundLink);
        }
        for ifindex in expected.ifindexes {
            if !self
                .inbound_link(uid, slot, cookie, *ifindex)?
                .is_attached()?
            {
                faults.push(Fault::InboundLink(*ifindex));
            }
        }
        Ok(faults)
    }

    /// Says which programs are not attached to the cgroup.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn verify_cgroup(&self) -> Result<Vec<Fault>, KernelError> {
        Ok(self
            .detached_cgroup_programs()?
            .into_iter()
            .map(Fault::CgroupLink)
            .collect())
    }
}
