//! Addresses and ports as they lie in the maps, and which addresses never leave a host.

/// An IPv6 address, or an IPv4 address mapped into IPv6: sixteen bytes in network order.
///
/// Held as four words, because programs that take addresses apart byte by byte run out of registers.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr([u32; 4]);

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);

/// A TCP port in network order.
pub type Port = [u8; 2];

/// The third word of an IPv4 address mapped into IPv6.
const V4_PREFIX: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// An IPv4 address, from its four bytes in network order.
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self([0, 0, V4_PREFIX, u32::from_ne_bytes(bytes)])
    }

    /// An address from its four words, each in network order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The address as four words, each in network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// An address from its sixteen bytes in network order.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The sixteen bytes in network order.
    pub fn bytes(&self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = self.0.map(u32::to_ne_bytes);
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    #[inline(always)]
    const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.0;
        a | b == 0 && c == V4_PREFIX
    }
}

/// Whether connecting to the address stays on the host: 127/8, `::1` and the unspecified addresses,
/// which Linux takes for loopback.
#[inline(always)]
pub const fn is_loopback(addr: &Addr) -> bool {
    let [a, b, c, d] = addr.0;
    let last = u32::from_be(d);
    match addr.is_v4() {
        true => last >> 24 == 127 || last == 0,
        false => a | b | c == 0 && last <= 1,
    }
}

/// Whether the address is loopback or link-local. Such destinations are never captured: they mean
/// something else, or nothing, seen from another socket.
#[inline(always)]
pub const fn is_local_scope(addr: &Addr) -> bool {
    if is_loopback(addr) {
        return true;
    }
    let [a, _, _, d] = addr.0;
    match addr.is_v4() {
        true => u32::from_be(d) >> 16 == 0xa9fe,
        false => u32::from_be(a) >> 22 == 0xfe80 >> 6,
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => Addr::v4(v4.octets()),
            IpAddr::V6(v6) => Addr::from_bytes(v6.octets()),
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

    #[test]
    fn bytes_are_kept_and_ipv4_is_mapped() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(Addr::from_bytes(bytes).bytes(), bytes);
        assert_eq!(
            Addr::v4([10, 0, 0, 5]).bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 5]
        );
    }
}
