//! Addresses and ports as they lie in the maps, and which addresses never leave a host.

/// An IPv6 address, or an IPv4 address mapped into IPv6; network order.
pub type Addr = [u8; 16];

/// A TCP port in network order.
pub type Port = [u8; 2];

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Whether connecting to the address stays on the host: 127/8, `::1` and the unspecified addresses,
/// which Linux takes for loopback.
#[inline]
pub fn is_loopback(addr: &Addr) -> bool {
    let v4 = is_v4(addr);
    if v4 && addr[12] == 127 {
        return true;
    }
    let last = u32::from_be_bytes([addr[12], addr[13], addr[14], addr[15]]);
    match v4 {
        true => last == 0,
        false => is_zero(addr, 12) && last <= 1,
    }
}

/// Whether the address is loopback or link-local. Such destinations are never captured: they mean
/// something else, or nothing, seen from another socket.
#[inline]
pub fn is_local_scope(addr: &Addr) -> bool {
    if is_loopback(addr) {
        return true;
    }
    match is_v4(addr) {
        true => addr[12] == 169 && addr[13] == 254,
        false => addr[0] == 0xfe && addr[1] & 0xc0 == 0x80,
    }
}

fn is_v4(addr: &Addr) -> bool {
    is_zero(addr, 10) && addr[10] == V4_PREFIX[10] && addr[11] == V4_PREFIX[11]
}

#[inline]
fn is_zero(addr: &Addr, until: usize) -> bool {
    let mut all = 0;
    let mut index = 0;
    while index < until {
        all |= addr[index];
        index += 1;
    }
    all == 0
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv6Addr};

    use super::*;

    fn addr(text: &str) -> Addr {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => Ipv6Addr::octets(&v6),
        }
    }

    #[test]
    fn scopes_are_told_apart() {
        for (text, loopback, local) in [
            ("127.0.0.1", true, true),
            ("127.8.9.10", true, true),
            ("0.0.0.0", true, true),
            ("::1", true, true),
            ("::", true, true),
            ("169.254.169.254", false, true),
            ("fe80::1", false, true),
            ("febf::1", false, true),
            ("fec0::1", false, false),
            ("10.0.0.1", false, false),
            ("126.0.0.1", false, false),
            ("169.253.0.1", false, false),
            ("fd00::1", false, false),
            ("::2", false, false),
            ("::7f00:1", false, false),
        ] {
            assert_eq!(
                (is_loopback(&addr(text)), is_local_scope(&addr(text))),
                (loopback, local),
                "{text}"
            );
        }
    }
}
