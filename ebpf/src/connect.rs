//! Outbound capture: gives a connecting socket the steering mark.
//!
//! The address is left as it is. The pod's routes turn marked packets back to lo, where socket
//! lookup finds the proxy's listener (`steer.rs`).

use core::ffi::c_int;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_setsockopt},
    programs::SockAddrContext,
};
use weft_common::{Addr, PodFlags, Port, Reason};
use weft_ebpf::{MPTCP, TCP, decide};

use crate::{
    context::{socket, word},
    count::{Flow, Program, count},
    maps::{self, PodSkips},
};

const SOL_SOCKET: c_int = 1;
const SO_MARK: c_int = 36;

/// Where an IPv4 socket connects to.
#[inline(always)]
pub(crate) fn destination4(ctx: *mut bpf_sock_addr) -> Addr {
    Addr::v4(word!(ctx, bpf_sock_addr, user_ip4).to_ne_bytes())
}

/// Where an IPv6 socket connects to; IPv4 destinations are mapped already.
#[inline(always)]
pub(crate) fn destination6(ctx: *mut bpf_sock_addr) -> Addr {
    let words = [
        word!(ctx, bpf_sock_addr, user_ip6, 0),
        word!(ctx, bpf_sock_addr, user_ip6, 1),
        word!(ctx, bpf_sock_addr, user_ip6, 2),
        word!(ctx, bpf_sock_addr, user_ip6, 3),
    ];
    Addr::from_words(words)
}

/// Marks the socket if its connection is to be captured, and counts why or why not.
#[inline(always)]
pub(crate) fn capture(
    ctx: &SockAddrContext,
    program: Program,
    destination: fn(*mut bpf_sock_addr) -> Addr,
) {
    let raw = ctx.sock_addr;
    // A multipath socket connects by a subflow, which calls the hook as TCP; the number of the
    // whole socket is taken too, should a kernel ask for that one.
    let protocol = word!(raw, bpf_sock_addr, protocol);
    if protocol != TCP && protocol != MPTCP {
        return;
    }
    // SAFETY: the context is the kernel's.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let reason = decide(ctx, cookie, destination);
    count(program, reason, || Flow {
        cookie,
        destination: destination(raw),
        destination_port: port(raw),
        ..Flow::default()
    });
}

#[inline(always)]
fn decide(
    ctx: &SockAddrContext,
    cookie: u64,
    destination: fn(*mut bpf_sock_addr) -> Addr,
) -> Reason {
    let raw = ctx.sock_addr;
    let enrolled = maps::pod(cookie).is_some_and(|pod| pod.flags().contains(PodFlags::ENROLLED));
    if !enrolled {
        return Reason::PassNotMeshed;
    }
    let sk = socket!(raw, bpf_sock_addr, __bindgen_anon_1);
    if sk.is_null() {
        return Reason::CaptureFailed;
    }
    // SAFETY: the socket comes from the context and is not null.
    if unsafe { maps::LENT.contains(sk) } {
        return Reason::PassLent;
    }
    let Some(settings) = maps::settings() else {
        return Reason::CaptureFailed;
    };
    let port = port(raw);
    let outcome = decide::outbound(&PodSkips(cookie), &destination(raw), port);
    let before = word!(sk, bpf_sock, mark);
    // A socket may be used again for a destination that must pass: our bits go then.
    let after = match outcome {
        Ok(()) => (before & !settings.mask()) | settings.mark(),
        Err(_) if before & settings.mask() == settings.mark() => before & !settings.mask(),
        Err(_) => before,
    };
    let failed = after != before && !set_mark(ctx, after);
    match outcome {
        Ok(()) if failed => Reason::CaptureFailed,
        Ok(()) => Reason::Captured,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn port(ctx: *mut bpf_sock_addr) -> Port {
    let [high, low, ..] = word!(ctx, bpf_sock_addr, user_port).to_ne_bytes();
    [high, low]
}

#[inline(always)]
fn set_mark(ctx: &SockAddrContext, mut mark: u32) -> bool {
    let value = (&raw mut mark).cast();
    // SAFETY: the value is four bytes on our stack, as the length says.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, value, 4) == 0 }
}
