//! Ports and networks that are not captured, as keys of longest-prefix maps.
//!
//! A key begins with what must match whole (pod, direction), so its prefix covers that and then as
//! much of the port or address as the entry speaks about. A range of ports becomes a few prefixes.

use crate::{Addr, Port};

/// Which connections an entry speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Those that the pod makes: the entry names their destination.
    Outbound = 0,
    /// Those that the pod gets: the entry names the pod's port, or the peer's address.
    Inbound = 1,
}

/// What [`crate::names::SKIP_NETS`] says of an address that it does not know.
pub const NET_UNKNOWN: u32 = 0;
/// The address is in a network that is not captured.
pub const NET_SKIPPED: u32 = 1;
/// The address is the pod's own.
pub const OWN_ADDRESS: u32 = 2;

/// Key of [`crate::names::SKIP_PORTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SkipPort {
    cookie: [u8; 8],
    direction: u8,
    pad: u8,
    port: Port,
}

const _: () = assert!(size_of::<SkipPort>() == 12 && align_of::<SkipPort>() == 1);

impl SkipPort {
    /// Length of a prefix that names one port.
    pub const FULL: u32 = Self::FIXED + 16;
    /// Bits before the port.
    const FIXED: u32 = 80;

    /// Key of one port.
    #[inline]
    pub const fn new(cookie: u64, direction: Direction, port: Port) -> Self {
        Self {
            cookie: cookie.to_ne_bytes(),
            direction: direction as u8,
            pad: 0,
            port,
        }
    }

    /// Length of a prefix that names the ports which share the first `bits` bits.
    pub const fn prefix(bits: u32) -> u32 {
        Self::FIXED + bits
    }

    /// Cookie of the pod that the entry belongs to.
    pub const fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.cookie)
    }
}

/// Key of [`crate::names::SKIP_NETS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SkipNet {
    cookie: [u8; 8],
    direction: u8,
    pad: [u8; 7],
    addr: Addr,
}

const _: () = assert!(size_of::<SkipNet>() == 32 && align_of::<SkipNet>() == 4);

impl SkipNet {
    /// Length of a prefix that names one address.
    pub const FULL: u32 = Self::FIXED + 128;
    /// Bits before the address.
    const FIXED: u32 = 128;

    /// Key of one address, or of the network that begins with it.
    #[inline]
    pub const fn new(cookie: u64, direction: Direction, addr: Addr) -> Self {
        Self {
            cookie: cookie.to_ne_bytes(),
            direction: direction as u8,
            pad: [0; 7],
            addr,
        }
    }

    /// Length of a prefix that names the addresses which share the first `bits` bits of 128.
    pub const fn prefix(bits: u32) -> u32 {
        Self::FIXED + bits
    }

    /// Cookie of the pod that the entry belongs to.
    pub const fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.cookie)
    }
}

/// Splits an inclusive range of ports into the fewest prefixes: (first port, bits that are fixed).
pub fn port_prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    let mut next = u32::from(first);
    core::iter::from_fn(move || {
        let left = (u32::from(last) + 1)
            .checked_sub(next)
            .filter(|left| *left > 0)?;
        let start = u16::try_from(next).ok()?;
        // The block is bounded by the alignment of its start and by what is left of the range.
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let size = aligned.min(left.ilog2());
        next += 1 << size;
        Some((start, 16 - size))
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;

    #[test]
    fn ranges_become_the_fewest_prefixes() {
        for (range, expected) in [
            ((25, 25), vec![(25, 16)]),
            ((0, 65535), vec![(0, 0)]),
            (
                (1, 65535),
                (0..16).map(|bit| (1_u16 << bit, 16 - bit)).collect(),
            ),
            ((4000, 4003), vec![(4000, 14)]),
            ((4001, 4004), vec![(4001, 16), (4002, 15), (4004, 16)]),
            ((65535, 65535), vec![(65535, 16)]),
            ((9, 3), vec![]),
        ] {
            let prefixes: Vec<_> = port_prefixes(range.0, range.1).collect();
            assert_eq!(prefixes, expected, "{range:?}");
        }
    }

    #[test]
    fn every_port_of_a_range_and_no_other_is_in_its_prefixes() {
        for (first, last) in [(4190, 4191), (1000, 2999), (32767, 32770), (1, 1023)] {
            let prefixes: Vec<_> = port_prefixes(first, last).collect();
            for port in 0..=u16::MAX {
                let found = prefixes
                    .iter()
                    .any(|(start, bits)| (u32::from(port) ^ u32::from(*start)) >> (16 - bits) == 0);
                assert_eq!(
                    found,
                    (first..=last).contains(&port),
                    "{port} in {first}-{last}"
                );
            }
        }
    }
}
