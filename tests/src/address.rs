//! Which address everything in a world has.
//!
//! Worlds live in namespaces of their own, so all of them use the same addresses:
//! nodes `10.77.0.N` and `fd77::N`, pods `10.77.N.P` and `fd77:0:0:N::P`, services `10.96.0.S` and
//! `fd96::S`, which nobody owns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address families of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only; IPv6 is switched off in the pods.
    V4,
    /// IPv6 only.
    V6,
    /// Both; IPv4 is the primary one.
    Dual,
}

impl Families {
    /// Whether IPv4 addresses are given out.
    pub const fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    /// Whether IPv6 addresses are given out.
    pub const fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }

    fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let v4 = self.has_v4().then_some(IpAddr::V4(v4));
        let v6 = self.has_v6().then_some(IpAddr::V6(v6));
        v4.into_iter().chain(v6).collect()
    }

    /// Addresses of the node with this number, on the network between the nodes.
    pub fn node(self, node: u8) -> Vec<IpAddr> {
        self.pick(
            Ipv4Addr::new(10, 77, 0, node),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, node.into()),
        )
    }

    /// Addresses of a pod; number 1 is the node's end of the pods' network.
    pub fn pod(self, node: u8, pod: u8) -> Vec<IpAddr> {
        self.pick(
            Ipv4Addr::new(10, 77, node, pod),
            Ipv6Addr::new(0xfd77, 0, 0, node.into(), 0, 0, 0, pod.into()),
        )
    }

    /// Addresses of the service with this number.
    pub fn service(self, service: u8) -> Vec<IpAddr> {
        self.pick(
            Ipv4Addr::new(10, 96, 0, service),
            Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, service.into()),
        )
    }
}

/// Length of the prefix that all of a node's pods share.
pub const fn prefix_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}

/// The network of an address, as `ip route` takes it.
pub fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_families() {
        let text = |addresses: Vec<IpAddr>| {
            addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        for (families, expected) in [
            (Families::V4, "10.77.2.3"),
            (Families::V6, "fd77:0:0:2::3"),
            (Families::Dual, "10.77.2.3 fd77:0:0:2::3"),
        ] {
            assert_eq!(text(families.pod(2, 3)), expected, "{families:?}");
        }
        assert_eq!(network("10.77.2.3".parse().unwrap()), "10.77.2.0/24");
        assert_eq!(network("fd77:0:0:2::3".parse().unwrap()), "fd77:0:0:2::/64");
    }
}
