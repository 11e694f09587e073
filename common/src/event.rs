//! Why a program did what it did, and what the guard reports.

use crate::{Addr, Port};

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// Why a connection or packet was treated as it was. The number is its place in
        /// [`crate::names::COUNTERS`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])+ $variant,)+ }

        impl Reason {
            /// All reasons, in the order of their number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Name for metrics and people.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

reasons! {
    /// An outbound connection was marked.
    Captured = "captured",
    /// The mark could not be set; the guard drops the connection.
    CaptureFailed = "capture_failed",
    /// A socket of the proxy connects.
    PassLent = "pass_lent",
    /// The namespace is of no enrolled pod. Not counted for TCP of the whole machine, only inside.
    PassNotMeshed = "pass_not_meshed",
    /// The destination is loopback, link-local or the pod itself.
    PassLoopbackOrOwn = "pass_loopback_or_own",
    /// The destination port is not captured, by the pod's settings.
    PassSkipPort = "pass_skip_port",
    /// The destination is in a network that is not captured, by the pod's settings.
    PassSkipNet = "pass_skip_net",
    /// A marked connection was given to the outbound listener.
    SteeredOut = "steered_out",
    /// A connection that arrived was given to the inbound listener at the device.
    SteeredIn = "steered_in",
    /// A connection that arrived was given to the inbound listener by socket lookup.
    SteeredInLookup = "steered_in_lookup",
    /// A connection that arrived goes to the application, by port or peer network.
    InboundSkip = "inbound_skip",
    /// A connection that arrived goes to one of the pod's own mesh listeners.
    InboundMeshPort = "inbound_mesh_port",
    /// A marked connection found no outbound listener and was held.
    SlotEmptyOut = "slot_empty_out",
    /// A connection that arrived found no inbound listener and was held.
    SlotEmptyIn = "slot_empty_in",
    /// The kernel refused to give a connection to a listener; it was dropped.
    AssignFailed = "assign_failed",
    /// A packet that arrived could not be understood; socket lookup decides about it.
    Unparsed = "unparsed",
    /// The guard dropped a connection attempt that was not captured.
    GuardDropSyn = "guard_drop_syn",
    /// The guard dropped a packet with the steering mark that was about to leave the pod.
    GuardDropMarked = "guard_drop_marked",
    /// The guard dropped what a network namespace inside the pod sent.
    GuardDropNested = "guard_drop_nested",
    /// The guard dropped a packet that it could not understand.
    GuardDropUnparsed = "guard_drop_unparsed",
    /// The guard would have dropped, and is told to report only.
    GuardAudit = "guard_audit",
    /// The guard let the proxy's own connection attempt out.
    GuardPassLent = "guard_pass_lent",
    /// The guard let out what the pod's settings take from capture.
    GuardPassSkip = "guard_pass_skip",
}

/// How many reasons there are.
pub const REASONS: usize = Reason::ALL.len();

impl Reason {
    /// The reason with the given number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// What the guard met, in [`crate::names::GUARD_EVENTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardRecord {
    /// Cookie of the enrolled pod's network namespace.
    pub cookie: u64,
    /// Cookie of the namespace that sent; another one for namespaces inside the pod.
    pub sender_cookie: u64,
    /// Time since boot.
    pub time_ns: u64,
    /// Number of a [`Reason`].
    pub reason: u32,
    /// 1 if the packet passed, because the guard only audits.
    pub audit: u32,
    /// Slot of the pod.
    pub slot: u32,
    /// Interface it was about to leave by.
    pub ifindex: u32,
    /// Where from.
    pub source: Addr,
    /// Where to.
    pub destination: Addr,
    /// Port it came from.
    pub source_port: Port,
    /// Port it went to.
    pub destination_port: Port,
    /// Zero.
    pub pad: [u8; 4],
}

const _: () = assert!(size_of::<GuardRecord>() == 80 && align_of::<GuardRecord>() == 8);

impl GuardRecord {
    /// Reads a record as it lies in the ring buffer; none when there are too few bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (first, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(*first)
        }
        let mut rest = bytes;
        let rest = &mut rest;
        Some(Self {
            cookie: u64::from_ne_bytes(take(rest)?),
            sender_cookie: u64::from_ne_bytes(take(rest)?),
            time_ns: u64::from_ne_bytes(take(rest)?),
            reason: u32::from_ne_bytes(take(rest)?),
            audit: u32::from_ne_bytes(take(rest)?),
            slot: u32::from_ne_bytes(take(rest)?),
            ifindex: u32::from_ne_bytes(take(rest)?),
            source: Addr::from_bytes(take(rest)?),
            destination: Addr::from_bytes(take(rest)?),
            source_port: take(rest)?,
            destination_port: take(rest)?,
            pad: take(rest)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_count_from_zero_and_have_different_names() {
        for (number, reason) in (0..).zip(Reason::ALL) {
            assert_eq!(Reason::from_number(number), Some(*reason));
            let same = Reason::ALL
                .iter()
                .filter(|other| other.name() == reason.name());
            assert_eq!(same.count(), 1, "{}", reason.name());
        }
        assert_eq!(Reason::from_number(u32::try_from(REASONS).unwrap()), None);
    }
}
