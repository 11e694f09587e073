//! Who is captured, who is steered where, and what the guard lets out.
//!
//! The hook, the lookup and the guard must agree: what the hook does not mark must not be dropped
//! by the guard, and what it marks must reach the listener. They do so by asking [`outbound`] and
//! [`inbound`] alike.

use weft_common::{
    Addr, Direction, NET_SKIPPED, OWN_ADDRESS, PodEntry, PodFlags, Port, Reason, is_local_scope,
    is_loopback,
};

use crate::Skips;

/// Whether a connection from an enrolled pod to the destination is captured.
///
/// # Errors
/// The reason why it is not.
#[inline(always)]
pub fn outbound<S: Skips>(skips: &S, destination: &Addr, port: Port) -> Result<(), Reason> {
    if is_local_scope(destination) {
        return Err(Reason::PassLoopbackOrOwn);
    }
    match skips.net(Direction::Outbound, destination) {
        OWN_ADDRESS => return Err(Reason::PassLoopbackOrOwn),
        NET_SKIPPED => return Err(Reason::PassSkipNet),
        _ => {}
    }
    if skips.skips_port(Direction::Outbound, port) {
        return Err(Reason::PassSkipPort);
    }
    Ok(())
}

/// Whether a connection that arrives at the pod's port is steered to its inbound listener.
///
/// # Errors
/// The reason why it is not.
#[inline(always)]
pub fn inbound<S: Skips>(pod: &PodEntry, skips: &S, peer: &Addr, port: Port) -> Result<(), Reason> {
    if !pod.flags().contains(PodFlags::ENROLLED) {
        return Err(Reason::PassNotMeshed);
    }
    if pod.is_mesh_port(port) {
        return Err(Reason::InboundMeshPort);
    }
    if skips.skips_port(Direction::Inbound, port) {
        return Err(Reason::InboundSkip);
    }
    match skips.net(Direction::Inbound, peer) {
        NET_SKIPPED => Err(Reason::InboundSkip),
        _ => Ok(()),
    }
}

/// How a connection came to socket lookup, which knows neither mark nor device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Arrival {
    /// From the pod to itself.
    Local,
    /// From the pod to somewhere else: it was marked, and looped back by the pod's routes.
    Outbound,
    /// From somewhere else to the pod.
    Inbound,
}

/// Tells by the addresses how a connection came to socket lookup.
///
/// The pod's own addresses are the only ones that its sockets can have as source, so the source
/// tells the pod's connections from those that arrive. Source and destination are equal when the
/// pod talks to an address of its own that nobody entered; steering that would loop for ever.
#[inline(always)]
pub fn arrival<S: Skips>(skips: &S, source: &Addr, destination: &Addr) -> Arrival {
    if is_loopback(destination) || source == destination {
        return Arrival::Local;
    }
    if !is_loopback(source) && skips.net(Direction::Outbound, source) != OWN_ADDRESS {
        return Arrival::Inbound;
    }
    if is_local_scope(destination) || skips.net(Direction::Outbound, destination) == OWN_ADDRESS {
        return Arrival::Local;
    }
    Arrival::Outbound
}

/// What the guard knows of a segment that leaves an enrolled pod by a device other than lo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Whether it asks for a new connection; if it does not, it carries the steering mark.
    pub is_syn: bool,
    /// Whether it carries the steering mark.
    pub is_marked: bool,
    /// Whether its socket was lent by weft-node.
    pub is_lent: bool,
    /// Whether it comes from a network namespace inside the pod.
    pub is_nested: bool,
}

/// Whether the segment evades capture.
///
/// # Errors
/// The reason why it may leave.
#[inline(always)]
pub fn evades<S: Skips>(
    leaving: Leaving,
    skips: &S,
    destination: &Addr,
    port: Port,
) -> Result<Reason, Reason> {
    if leaving.is_lent {
        return Err(Reason::GuardPassLent);
    }
    if leaving.is_marked {
        return Ok(Reason::GuardDropMarked);
    }
    if outbound(skips, destination, port).is_err() {
        return Err(Reason::GuardPassSkip);
    }
    Ok(match leaving.is_nested {
        true => Reason::GuardDropNested,
        false => Reason::GuardDropSyn,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use weft_common::NET_UNKNOWN;

    use super::*;

    /// Own addresses 10.0.0.5 and fd00::5; 10.9.0.0/16 is skipped both ways; port 25 outbound and
    /// port 9000 inbound.
    struct Pod;

    impl Skips for Pod {
        fn skips_port(&self, direction: Direction, port: Port) -> bool {
            let port = u16::from_be_bytes(port);
            matches!(
                (direction, port),
                (Direction::Outbound, 25) | (Direction::Inbound, 9000)
            )
        }

        fn net(&self, direction: Direction, address: &Addr) -> u32 {
            let own = [addr("10.0.0.5"), addr("fd00::5")].contains(address);
            match direction {
                Direction::Outbound if own => OWN_ADDRESS,
                _ if address.bytes()[..14] == addr("10.9.0.0").bytes()[..14] => NET_SKIPPED,
                Direction::Outbound | Direction::Inbound => NET_UNKNOWN,
            }
        }
    }

    fn addr(text: &str) -> Addr {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => Addr::v4(v4.octets()),
            IpAddr::V6(v6) => Addr::from_bytes(v6.octets()),
        }
    }

    #[test]
    fn outbound_is_captured_unless_local_own_or_skipped() {
        for (destination, port, expected) in [
            ("10.96.0.10", 80, Ok(())),
            ("fd00::7", 80, Ok(())),
            ("127.0.0.1", 80, Err(Reason::PassLoopbackOrOwn)),
            ("fe80::1", 80, Err(Reason::PassLoopbackOrOwn)),
            ("10.0.0.5", 80, Err(Reason::PassLoopbackOrOwn)),
            ("10.9.1.1", 80, Err(Reason::PassSkipNet)),
            ("10.96.0.10", 25, Err(Reason::PassSkipPort)),
            ("10.96.0.10", 9000, Ok(())),
        ] {
            let found = outbound(&Pod, &addr(destination), u16::to_be_bytes(port));
            assert_eq!(found, expected, "{destination}:{port}");
        }
    }

    #[test]
    fn inbound_is_steered_unless_skipped_or_for_the_mesh_ports() {
        let on = PodEntry::new(PodFlags::ENROLLED, 1, 4143, 4191);
        let off = PodEntry::new(PodFlags::GUARD_ENFORCE, 1, 4143, 4191);
        for (pod, peer, port, expected) in [
            (&on, "10.0.0.9", 8080, Ok(())),
            (&on, "10.0.0.9", 25, Ok(())),
            (&on, "10.0.0.9", 4143, Err(Reason::InboundMeshPort)),
            (&on, "10.0.0.9", 4191, Err(Reason::InboundMeshPort)),
            (&on, "10.0.0.9", 9000, Err(Reason::InboundSkip)),
            (&on, "10.9.0.9", 8080, Err(Reason::InboundSkip)),
            (&off, "10.0.0.9", 8080, Err(Reason::PassNotMeshed)),
        ] {
            let found = inbound(pod, &Pod, &addr(peer), u16::to_be_bytes(port));
            assert_eq!(found, expected, "{peer} to {port}");
        }
    }

    #[test]
    fn lookup_tells_by_the_addresses_how_a_connection_came() {
        for (source, destination, expected) in [
            ("10.0.0.5", "10.96.0.10", Arrival::Outbound),
            ("127.0.0.5", "10.96.0.10", Arrival::Outbound),
            ("fd00::5", "fd00::7", Arrival::Outbound),
            ("10.0.0.5", "10.0.0.5", Arrival::Local),
            ("127.0.0.1", "10.0.0.5", Arrival::Local),
            ("10.0.0.5", "127.0.0.1", Arrival::Local),
            ("10.8.0.1", "10.8.0.1", Arrival::Local),
            ("fd00::5", "fe80::1", Arrival::Local),
            ("10.0.0.9", "10.0.0.5", Arrival::Inbound),
            ("fe80::9", "fe80::5", Arrival::Inbound),
            ("10.9.0.9", "10.0.0.5", Arrival::Inbound),
        ] {
            let found = arrival(&Pod, &addr(source), &addr(destination));
            assert_eq!(found, expected, "{source} to {destination}");
        }
    }

    #[test]
    fn guard_lets_out_only_lent_sockets_and_skips() {
        let syn = Leaving {
            is_syn: true,
            is_marked: false,
            is_lent: false,
            is_nested: false,
        };
        let marked = Leaving {
            is_marked: true,
            ..syn
        };
        let data = Leaving {
            is_syn: false,
            ..marked
        };
        let lent = Leaving {
            is_lent: true,
            ..marked
        };
        let nested = Leaving {
            is_nested: true,
            ..syn
        };
        for (leaving, destination, expected) in [
            (syn, "10.96.0.10", Ok(Reason::GuardDropSyn)),
            (syn, "10.9.0.1", Err(Reason::GuardPassSkip)),
            (marked, "10.9.0.1", Ok(Reason::GuardDropMarked)),
            (data, "10.96.0.10", Ok(Reason::GuardDropMarked)),
            (lent, "10.96.0.10", Err(Reason::GuardPassLent)),
            (nested, "10.96.0.10", Ok(Reason::GuardDropNested)),
        ] {
            let found = evades(leaving, &Pod, &addr(destination), [0, 80]);
            assert_eq!(found, expected, "{leaving:?} to {destination}");
        }
    }

    #[test]
    fn hook_and_guard_agree_on_every_destination() {
        let syn = Leaving {
            is_syn: true,
            is_marked: false,
            is_lent: false,
            is_nested: false,
        };
        for destination in ["10.96.0.10", "10.0.0.5", "127.0.0.1", "10.9.0.1", "fe80::1"] {
            for port in [25_u16, 80, 9000] {
                let port = port.to_be_bytes();
                let captured = outbound(&Pod, &addr(destination), port).is_ok();
                let dropped = evades(syn, &Pod, &addr(destination), port).is_ok();
                assert_eq!(captured, dropped, "{destination}");
            }
        }
    }
}
