//! Writes a line about each decision to the log that weft-node prints, for debugging.
//!
//! Names are written as wide as the widest: the verifier follows copies of a fixed length only.

use core::hint::black_box;

use aya_log_ebpf::info;
use weft_common::{Reason, names};

use crate::count::Flow;

const PROGRAM_WIDTH: usize = 16;
const REASON_WIDTH: usize = 20;

static PROGRAMS: [[u8; PROGRAM_WIDTH]; names::PROGRAMS.len()] = padded(names::PROGRAMS);
static REASONS: [[u8; REASON_WIDTH]; Reason::ALL.len()] = {
    let mut reasons = [""; Reason::ALL.len()];
    let mut index = 0;
    while index < reasons.len() {
        reasons[index] = Reason::ALL[index].name();
        index += 1;
    }
    padded(reasons)
};

/// Writes the line. A function of the kernel's, so that each program holds it once.
#[inline(never)]
pub(crate) fn write(program: usize, reason: usize, flow: &Flow) {
    // Hidden from the compiler, which would leave out the comparisons that the verifier wants.
    let program = PROGRAMS.get(black_box(program));
    let reason = REASONS.get(black_box(reason));
    let (Some(program), Some(reason)) = (program, reason) else {
        return;
    };
    // SAFETY: padding names with blanks leaves them UTF-8.
    let (program, reason) = unsafe {
        (
            core::str::from_utf8_unchecked(program),
            core::str::from_utf8_unchecked(reason),
        )
    };
    info!(
        (),
        "{} {} [{:i}]:{} > [{:i}]:{} netns cookie {}",
        program,
        reason,
        flow.source.bytes(),
        u16::from_be_bytes(flow.source_port),
        flow.destination.bytes(),
        u16::from_be_bytes(flow.destination_port),
        flow.cookie,
    );
}

/// The names, filled up with blanks. Does not compile when one is too long.
const fn padded<const COUNT: usize, const WIDTH: usize>(
    names: [&str; COUNT],
) -> [[u8; WIDTH]; COUNT] {
    let mut padded = [[b' '; WIDTH]; COUNT];
    let mut name = 0;
    while name < COUNT {
        let bytes = names[name].as_bytes();
        let mut index = 0;
        while index < bytes.len() {
            padded[name][index] = bytes[index];
            index += 1;
        }
        name += 1;
    }
    padded
}
