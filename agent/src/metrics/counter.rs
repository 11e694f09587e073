//! A number that only grows.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Adding never waits.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        // Nothing is published through a counter: readers only want a recent value.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
