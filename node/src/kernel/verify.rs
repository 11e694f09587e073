//! stub
use super::ListenerSlot;

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
    /// Listeners that should be in the map, with their socket cookies.
    pub listeners: &'a [(ListenerSlot, u64)],
    /// Interfaces on which inbound steering should be attached.
    pub ifindexes: &'a [u32],
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A cgroup program is not attached (its name).
    CgroupLink(&'static str),
    /// The pod is not in the map of pods.
    PodMissing,
    /// The pod is in the map, with another slot or switch.
    PodDiffers,
    /// A listener is missing from its slot, or another one is there.
    Listener(ListenerSlot),
    /// Outbound steering is not attached to the pod's network namespace.
    OutboundLink,
    /// Inbound steering is not attached to the interface.
    InboundLink(u32),
}
