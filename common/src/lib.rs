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
}
