//! Counts reasons, per CPU. Programs of a build with the feature `log` write a line besides.

use weft_common::{Addr, Port, Reason};
use weft_ebpf::packet::Segment;

use crate::maps::COUNTERS;

/// The program that decided; the number is its place in [`weft_common::names::PROGRAMS`].
#[derive(Clone, Copy)]
pub(crate) enum Program {
    CaptureConnect4,
    CaptureConnect6,
    GuardEgress,
    SteerOutbound,
    SteerInbound,
}

/// What was decided about. What the program does not know is zero.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(feature = "log"), expect(dead_code, reason = "only logged"))]
pub(crate) struct Flow {
    /// Cookie of the network namespace.
    pub(crate) cookie: u64,
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    pub(crate) source_port: Port,
    pub(crate) destination_port: Port,
}

impl Flow {
    /// The flow of the segment, as far as that was understood.
    #[inline(always)]
    pub(crate) fn of(cookie: u64, segment: Option<&Segment>) -> Self {
        segment.map_or(
            Self {
                cookie,
                ..Self::default()
            },
            |segment| Self {
                cookie,
                source: segment.source,
                destination: segment.destination,
                source_port: segment.source_port,
                destination_port: segment.destination_port,
            },
        )
    }
}

/// Counts the reason. The flow is only asked for by a build that logs.
#[inline(always)]
pub(crate) fn count(program: Program, reason: Reason, flow: impl FnOnce() -> Flow) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot is this CPU's, and programs are not interrupted by themselves here.
        unsafe { *counter += 1 };
    }
    #[cfg(feature = "log")]
    crate::log::write(program as usize, reason as usize, &flow());
    #[cfg(not(feature = "log"))]
    drop((program, flow));
}
