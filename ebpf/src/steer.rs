//! Steering: gives connections to the proxy's listeners.
//!
//! Two places, one copy of each per pod. The device (`tc` ingress) sees what arrives from outside:
//! it holds connections while there is no listener (the client's kernel repeats its SYN) and gives
//! the others to the inbound listener. Socket lookup sees what the kernel has no socket for: marked
//! connections that the pod's routes looped back, and what arrived without passing the device
//! program's eyes: fragments, SYN cookies' answers, a client's port that is still in TIME_WAIT.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sk_lookup, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::{bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::{SkLookupContext, TcContext},
};
use weft_common::{Addr, ListenerSlot, Port, Reason};
use weft_ebpf::{
    TCP,
    decide::{self, Arrival},
    packet::{self, Parsed, Segment},
};

use crate::{
    context::word,
    count::{Flow, Program, count},
    maps::{self, PodSkips},
    skb::Skb,
};

/// Cookie of the network namespace that this copy is for.
#[unsafe(no_mangle)]
static POD_COOKIE: Global<u64> = Global::new(0);
/// Slot of the pod that this copy is for.
#[unsafe(no_mangle)]
static POD_SLOT: Global<u32> = Global::new(0);

const AF_INET: u32 = 2;
const LISTEN: u32 = 10;
const TIME_WAIT: u32 = 6;

/// What becomes of a connection in socket lookup.
#[must_use]
pub(crate) enum Lookup {
    /// The kernel goes on, with the socket that was assigned if there was one.
    Pass,
    /// Refused.
    Drop,
}

/// What becomes of a packet at the device.
#[must_use]
pub(crate) enum Device {
    /// It goes on.
    Pass,
    /// It vanishes, and its sender tries again.
    Drop,
}

/// Answers a socket lookup in the pod's namespace.
#[inline(always)]
pub(crate) fn lookup(ctx: &SkLookupContext) -> Lookup {
    let raw = ctx.lookup;
    if word!(raw, bpf_sk_lookup, protocol) != TCP {
        return Lookup::Pass;
    }
    let is_v4 = word!(raw, bpf_sk_lookup, family) == AF_INET;
    let (source, destination) = ends(ctx, is_v4);
    let cookie = POD_COOKIE.load();
    let flow = || Flow {
        cookie,
        source,
        destination,
        source_port: remote_port(ctx),
        destination_port: local_port(ctx),
    };
    let skips = PodSkips(cookie);
    let which = match decide::arrival(&skips, &source, &destination) {
        Arrival::Local => return Lookup::Pass,
        // The mark was set, so it is steered even if the pod has been taken out since.
        Arrival::Outbound if is_v4 => ListenerSlot::Outbound4,
        Arrival::Outbound => ListenerSlot::Outbound6,
        Arrival::Inbound => {
            let port = local_port(ctx);
            let steered = maps::pod(cookie)
                .is_some_and(|pod| decide::inbound(&pod, &skips, &source, port).is_ok());
            match (steered, is_v4) {
                (false, _) => return Lookup::Pass,
                (true, true) => ListenerSlot::Inbound4,
                (true, false) => ListenerSlot::Inbound6,
            }
        }
    };
    // What arrives is counted at the device, which asks here as well.
    let is_outbound = matches!(which, ListenerSlot::Outbound4 | ListenerSlot::Outbound6);
    let Some(listener) = maps::listener(which.index(POD_SLOT.load())) else {
        if is_outbound {
            count(Program::SteerOutbound, Reason::SlotEmptyOut, flow);
        }
        return Lookup::Drop;
    };
    match assign(ctx.as_ptr(), listener) {
        true => {
            if is_outbound {
                count(Program::SteerOutbound, Reason::SteeredOut, flow);
            }
            Lookup::Pass
        }
        false => {
            count(Program::SteerOutbound, Reason::AssignFailed, flow);
            Lookup::Drop
        }
    }
}

/// Decides about a packet that arrives at the pod's device.
#[inline(always)]
pub(crate) fn arriving(ctx: &TcContext) -> Device {
    let packet = Skb(ctx.skb.skb);
    let segment = match packet::parse(&packet) {
        Parsed::Tcp(header) if header.is_syn => header.segment(&packet),
        // Established connections need no steering, and what answers a SYN cookie is found by
        // socket lookup: the bulk of the packets is let go here.
        Parsed::Tcp(_) | Parsed::Other => return Device::Pass,
        Parsed::Unclear => None,
    };
    let Some(segment) = segment else {
        count(Program::SteerInbound, Reason::Unparsed, || {
            Flow::of(POD_COOKIE.load(), None)
        });
        return Device::Pass;
    };
    let cookie = POD_COOKIE.load();
    let Some(pod) = maps::pod(cookie) else {
        return Device::Pass;
    };
    let port = segment.destination_port;
    match decide::inbound(&pod, &PodSkips(cookie), &segment.source, port) {
        Ok(()) => steer_arriving(ctx, &segment),
        Err(Reason::PassNotMeshed) => Device::Pass,
        Err(reason) => {
            count(Program::SteerInbound, reason, || {
                Flow::of(cookie, Some(&segment))
            });
            Device::Pass
        }
    }
}

#[inline(always)]
fn steer_arriving(ctx: &TcContext, segment: &Segment) -> Device {
    let which = match segment.is_v4 {
        true => ListenerSlot::Inbound4,
        false => ListenerSlot::Inbound6,
    };
    let flow = || Flow::of(POD_COOKIE.load(), Some(segment));
    let Some(listener) = maps::listener(which.index(POD_SLOT.load())) else {
        count(Program::SteerInbound, Reason::SlotEmptyIn, flow);
        return Device::Drop;
    };
    let (reason, device) = match known_socket(ctx, segment) {
        // A connection or a handshake that exists goes its way.
        Known::Connection => {
            // SAFETY: the listener was taken from the map and is released once.
            unsafe { bpf_sk_release(listener) };
            return Device::Pass;
        }
        // The kernel ends the old connection itself and then asks socket lookup.
        Known::TimeWait => {
            // SAFETY: as above.
            unsafe { bpf_sk_release(listener) };
            (Reason::SteeredInLookup, Device::Pass)
        }
        Known::Nothing => match assign(ctx.as_ptr(), listener) {
            true => (Reason::SteeredIn, Device::Pass),
            false => (Reason::AssignFailed, Device::Drop),
        },
    };
    count(Program::SteerInbound, reason, flow);
    device
}

enum Known {
    Connection,
    TimeWait,
    Nothing,
}

#[inline(always)]
fn known_socket(ctx: &TcContext, segment: &Segment) -> Known {
    let (mut tuple, size) = tuple(segment);
    // SAFETY: the tuple is on our stack and as long as its family needs.
    let sk = unsafe {
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, netns, 0)
    };
    if sk.is_null() {
        return Known::Nothing;
    }
    let state = word!(sk, bpf_sock, state);
    // SAFETY: the lookup gave us a reference.
    unsafe { bpf_sk_release(sk.cast()) };
    match state {
        LISTEN => Known::Nothing,
        TIME_WAIT => Known::TimeWait,
        _ => Known::Connection,
    }
}

#[inline(always)]
fn tuple(segment: &Segment) -> (bpf_sock_tuple, u32) {
    let sport = u16::from_ne_bytes(segment.source_port);
    let dport = u16::from_ne_bytes(segment.destination_port);
    match segment.is_v4 {
        true => {
            let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: segment.source.words()[3],
                daddr: segment.destination.words()[3],
                sport,
                dport,
            };
            (
                bpf_sock_tuple {
                    __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 },
                },
                12,
            )
        }
        false => {
            let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: segment.source.words(),
                daddr: segment.destination.words(),
                sport,
                dport,
            };
            (
                bpf_sock_tuple {
                    __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 },
                },
                36,
            )
        }
    }
}

/// Gives the packet or lookup to the listener, and lets go of the listener.
#[inline(always)]
fn assign(ctx: *mut c_void, listener: *mut c_void) -> bool {
    // SAFETY: the listener was taken from the map, is not null and is released once.
    unsafe {
        let assigned = bpf_sk_assign(ctx, listener, 0) == 0;
        bpf_sk_release(listener);
        assigned
    }
}

#[inline(always)]
fn ends(ctx: &SkLookupContext, is_v4: bool) -> (Addr, Addr) {
    let raw = ctx.lookup;
    if is_v4 {
        let source = Addr::v4(word!(raw, bpf_sk_lookup, remote_ip4).to_ne_bytes());
        return (
            source,
            Addr::v4(word!(raw, bpf_sk_lookup, local_ip4).to_ne_bytes()),
        );
    }
    let source = [
        word!(raw, bpf_sk_lookup, remote_ip6, 0),
        word!(raw, bpf_sk_lookup, remote_ip6, 1),
        word!(raw, bpf_sk_lookup, remote_ip6, 2),
        word!(raw, bpf_sk_lookup, remote_ip6, 3),
    ];
    let destination = [
        word!(raw, bpf_sk_lookup, local_ip6, 0),
        word!(raw, bpf_sk_lookup, local_ip6, 1),
        word!(raw, bpf_sk_lookup, local_ip6, 2),
        word!(raw, bpf_sk_lookup, local_ip6, 3),
    ];
    (Addr::from_words(source), Addr::from_words(destination))
}

/// The kernel gives this port in network order, in the first half of a word.
#[inline(always)]
fn remote_port(ctx: &SkLookupContext) -> Port {
    let [high, low, ..] = word!(ctx.lookup, bpf_sk_lookup, remote_port).to_ne_bytes();
    [high, low]
}

/// The kernel gives this port in host order.
#[inline(always)]
fn local_port(ctx: &SkLookupContext) -> Port {
    let [.., high, low] = word!(ctx.lookup, bpf_sk_lookup, local_port).to_be_bytes();
    [high, low]
}

const _: () = assert!(core::mem::offset_of!(bpf_sock, state) == 72);
