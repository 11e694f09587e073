//! The programs, one function per hook. Each gathers nothing itself: see the module it calls.
//!
//! On the host this is an empty program, so that the crate is checked and tested with the rest of
//! the workspace; `cargo xtask build-ebpf` makes the object.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "aya's macros make public functions without docs that take contexts by value"
)]

mod connect;
mod context;
mod count;
mod guard;
#[cfg(feature = "log")]
mod log;
mod maps;
mod skb;
mod steer;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock_addr, classifier, sk_lookup},
    programs::{SkBuffContext, SkLookupContext, SockAddrContext, TcContext},
};
use count::Program;

/// Connect hooks never refuse: a kernel's own socket that is told EPERM can hang the machine.
const ALLOW: i32 = 1;
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
/// Lets other programs on the device see the packet.
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;
const EGRESS_DROP: i32 = 0;
const EGRESS_PASS: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn capture_connect4(ctx: SockAddrContext) -> i32 {
    connect::capture(&ctx, Program::CaptureConnect4, connect::destination4);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn capture_connect6(ctx: SockAddrContext) -> i32 {
    connect::capture(&ctx, Program::CaptureConnect6, connect::destination6);
    ALLOW
}

#[cgroup_skb(egress)]
pub fn guard_egress(ctx: SkBuffContext) -> i32 {
    match guard::leaving(&ctx) {
        guard::Verdict::Pass => EGRESS_PASS,
        guard::Verdict::Drop => EGRESS_DROP,
    }
}

#[sk_lookup]
pub fn steer_outbound(ctx: SkLookupContext) -> u32 {
    match steer::lookup(&ctx) {
        steer::Lookup::Pass => SK_PASS,
        steer::Lookup::Drop => SK_DROP,
    }
}

#[classifier]
pub fn steer_inbound(ctx: TcContext) -> i32 {
    match steer::arriving(&ctx) {
        steer::Device::Pass => TC_NEXT,
        steer::Device::Drop => TC_DROP,
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper that is called here is reserved for programs under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
