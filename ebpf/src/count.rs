//! Counts reasons, per CPU.

use weft_common::Reason;

use crate::maps::COUNTERS;

/// Counts the reason.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot is this CPU's, and programs are not interrupted by themselves here.
        unsafe { *counter += 1 };
    }
}
