//! Buffers of the thread, lent to a direction while it has bytes that are not written yet.

use std::cell::RefCell;

/// The most that one direction holds.
pub(super) const SIZE: usize = 64 * 1024;
/// Buffers kept for later. One is enough while everybody keeps up; more serve slow readers.
const KEPT: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Takes a buffer of [`SIZE`] bytes with undefined contents.
pub(super) fn take() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

/// Gives a buffer back.
pub(super) fn give(buffer: Box<[u8]>) {
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}

#[cfg(test)]
pub(super) fn kept() -> usize {
    FREE.with_borrow(Vec::len)
}
