//! What the kernel programs and weft-node agree upon: names of maps and programs, and the bytes in
//! the maps.
//!
//! Every type here is plain data: `repr(C)`, fixed size, explicit zeroed padding, addresses as 16
//! bytes (IPv4 mapped into IPv6) and ports as two, both in network order; no `bool`, no `Option`.
//! A change of layout or of a map's meaning bumps [`ABI`], which is part of every pin's path, so
//! that programs of one version never meet maps of another.
#![no_std]
#![deny(unsafe_code)]

mod addr;
mod config;
mod event;
pub mod names;
mod pod;
mod skip;

pub use addr::{Addr, Port, is_local_scope, is_loopback};
pub use config::{LEVELS, Settings};
pub use event::{GuardRecord, REASONS, Reason};
pub use pod::{ListenerSlot, MAX_PODS, PodEntry, PodFlags};
pub use skip::{
    Direction, NET_SKIPPED, NET_UNKNOWN, OWN_ADDRESS, SkipNet, SkipPort, port_prefixes,
};

/// Version of maps and programs; part of the pins' path.
pub const ABI: u32 = 1;

/// Makes the types readable and writable by aya in user space.
#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya's marker for plain data is an unsafe trait")]

    macro_rules! pods {
        ($($name:ty),+ $(,)?) => {$(
            // SAFETY: the type is `repr(C)` and `Copy`, and the assertion beside its definition
            // proves that its fields fill it without padding.
            unsafe impl aya::Pod for $name {}
        )+};
    }
    pods!(
        crate::PodEntry,
        crate::SkipPort,
        crate::SkipNet,
        crate::Settings,
        crate::GuardRecord
    );

    #[cfg(test)]
    mod tests {
        use aya::Pod;

        use crate::{
            Addr, Direction, GuardRecord, PodEntry, PodFlags, Settings, SkipNet, SkipPort,
        };

        fn bytes<T: Pod, const N: usize>(value: &T) -> [u8; N] {
            assert_eq!(size_of::<T>(), N);
            // SAFETY: `Pod` promises that all bytes are initialised, and there are N of them.
            unsafe {
                core::ptr::from_ref(value)
                    .cast::<[u8; N]>()
                    .read_unaligned()
            }
        }

        #[test]
        fn entries_lie_in_maps_as_they_always_did() {
            let flags = PodFlags::ENROLLED.with(PodFlags::GUARD_ENFORCE);
            let pod: [u8; 16] = bytes(&PodEntry::new(flags, 3, 4143, 4191));
            let numbers = [5_u32.to_ne_bytes(), 3_u32.to_ne_bytes()].concat_8();
            assert_eq!(pod[..8], numbers);
            assert_eq!(pod[8..], [0x10, 0x2f, 0x10, 0x5f, 0, 0, 0, 0]);

            let port: [u8; 12] = bytes(&SkipPort::new(7, Direction::Inbound, [0x1f, 0x90]));
            assert_eq!(port[..8], 7_u64.to_ne_bytes());
            assert_eq!(port[8..], [1, 0, 0x1f, 0x90]);

            let net: [u8; 32] = bytes(&SkipNet::new(
                7,
                Direction::Outbound,
                Addr::v4([10, 1, 2, 3]),
            ));
            assert_eq!(net[..8], 7_u64.to_ne_bytes());
            assert_eq!(net[8..26], [0; 18]);
            assert_eq!(net[26..], [0xff, 0xff, 10, 1, 2, 3]);

            let settings: [u8; 32] = bytes(&Settings::new(0x10, 0x30).with_levels([2, 0, 0, 0]));
            let numbers = [0x10_u32.to_ne_bytes(), 0x30_u32.to_ne_bytes()].concat_8();
            assert_eq!(settings[..8], numbers);
            assert_eq!(settings[8..12], 2_u32.to_ne_bytes());
            assert_eq!(settings[12..24], [0; 12]);
            assert_eq!(settings[24..], 100_000_000_u64.to_ne_bytes());
        }

        #[test]
        fn a_record_is_read_back_from_its_bytes() {
            let record = GuardRecord {
                cookie: 1,
                sender_cookie: 2,
                time_ns: 3,
                reason: 4,
                audit: 5,
                slot: 6,
                ifindex: 7,
                source: Addr::v4([10, 0, 0, 1]),
                destination: Addr::from_bytes([9; 16]),
                source_port: [1, 2],
                destination_port: [3, 4],
                pad: [0; 4],
            };
            let raw: [u8; 80] = bytes(&record);
            assert_eq!(GuardRecord::from_bytes(&raw), Some(record));
            assert_eq!(GuardRecord::from_bytes(&raw[..79]), None);
        }

        /// Two numbers side by side.
        trait Concat {
            fn concat_8(self) -> [u8; 8];
        }

        impl Concat for [[u8; 4]; 2] {
            fn concat_8(self) -> [u8; 8] {
                let [[a, b, c, d], [e, f, g, h]] = self;
                [a, b, c, d, e, f, g, h]
            }
        }
    }
}
