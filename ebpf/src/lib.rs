//! What the kernel programs decide, apart from the kernel: pure, and tested on any host.
//!
//! The programs themselves (`main.rs`) gather facts, ask these functions, and act. Lookups go
//! through the small trait [`Skips`] and packets through [`packet::Packet`], so that tests need
//! neither maps nor sockets.
#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]

pub mod decide;
pub mod packet;

use weft_common::{Addr, Direction, Port};

/// Protocol number of TCP.
pub const TCP: u32 = 6;
/// Protocol number of Multipath TCP, as sockets carry it; on the wire it is TCP.
pub const MPTCP: u32 = 262;

/// What a pod's settings take from capture.
pub trait Skips {
    /// Whether connections of this direction at this port are not captured.
    fn skips_port(&self, direction: Direction, port: Port) -> bool;
    /// What is known of the address: one of the constants beside [`weft_common::SkipNet`].
    fn net(&self, direction: Direction, addr: &Addr) -> u32;
}
