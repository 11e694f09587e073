//! What the programs know about a pod, and where its listeners are.

use crate::Port;

/// Most pods that one node can mesh: the size of the maps.
pub const MAX_PODS: u32 = 1024;

/// Switches of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodFlags(u32);

impl PodFlags {
    /// Connections of the pod are captured.
    pub const ENROLLED: Self = Self(1);
    /// What evades capture is counted and reported.
    pub const GUARD_AUDIT: Self = Self(2);
    /// What evades capture is dropped besides.
    pub const GUARD_ENFORCE: Self = Self(4);

    /// No switch on.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether all of the given switches are on.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and the given switches.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These without the given switches.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }
}

/// One pod, in [`crate::names::PODS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    flags: u32,
    slot: u32,
    inbound_port: Port,
    admin_port: Port,
    pad: [u8; 4],
}

const _: () = assert!(size_of::<PodEntry>() == 16 && align_of::<PodEntry>() == 4);

impl PodEntry {
    /// An entry for the pod in `slot` whose own mesh listeners are at the two ports.
    pub const fn new(flags: PodFlags, slot: u32, inbound_port: u16, admin_port: u16) -> Self {
        Self {
            flags: flags.0,
            slot,
            inbound_port: inbound_port.to_be_bytes(),
            admin_port: admin_port.to_be_bytes(),
            pad: [0; 4],
        }
    }

    /// The pod's switches.
    #[inline]
    pub const fn flags(&self) -> PodFlags {
        PodFlags(self.flags)
    }

    /// The same pod with other switches.
    #[must_use]
    pub const fn with_flags(self, flags: PodFlags) -> Self {
        Self {
            flags: flags.0,
            ..self
        }
    }

    /// The pod's slot.
    #[inline]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether the pod's own mesh listeners have this port, so that it needs no steering.
    #[inline]
    pub const fn is_mesh_port(&self, port: Port) -> bool {
        let port = u16::from_ne_bytes(port);
        port == u16::from_ne_bytes(self.inbound_port) || port == u16::from_ne_bytes(self.admin_port)
    }
}

/// Which of a pod's steered listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerSlot {
    /// Outbound, IPv4.
    Outbound4,
    /// Outbound, IPv6.
    Outbound6,
    /// Inbound, IPv4.
    Inbound4,
    /// Inbound, IPv6.
    Inbound6,
}

impl ListenerSlot {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 4] = [
        Self::Outbound4,
        Self::Outbound6,
        Self::Inbound4,
        Self::Inbound6,
    ];

    /// Index in [`crate::names::LISTENERS`] of this listener of the pod in `slot`.
    #[inline]
    pub const fn index(self, slot: u32) -> u32 {
        slot * 4
            + match self {
                Self::Outbound4 => 0,
                Self::Outbound6 => 1,
                Self::Inbound4 => 2,
                Self::Inbound6 => 3,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_added_and_taken_away() {
        let flags = PodFlags::empty()
            .with(PodFlags::ENROLLED)
            .with(PodFlags::GUARD_AUDIT);
        assert!(flags.contains(PodFlags::ENROLLED) && !flags.contains(PodFlags::GUARD_ENFORCE));
        assert_eq!(flags.without(PodFlags::ENROLLED), PodFlags::GUARD_AUDIT);
    }

    #[test]
    fn mesh_ports_are_recognised_in_network_order() {
        let entry = PodEntry::new(PodFlags::empty(), 3, 4143, 4191);
        for (port, expected) in [(4143_u16, true), (4191, true), (4140, false), (0, false)] {
            assert_eq!(entry.is_mesh_port(port.to_be_bytes()), expected, "{port}");
        }
    }

    #[test]
    fn listeners_of_neighbouring_slots_do_not_overlap() {
        let indices: [u32; 4] = ListenerSlot::ALL.map(|which| which.index(2));
        assert_eq!(indices, [8, 9, 10, 11]);
        assert_eq!(ListenerSlot::Outbound4.index(3), 12);
    }
}
