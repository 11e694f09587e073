//! Readiness of a process: ready when nothing is left that it waits for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// What a process still waits for before it is ready. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<State>);

#[derive(Debug, Default)]
struct State {
    pending: AtomicUsize,
    draining: AtomicBool,
}

/// Something the process waits for. Dropping it says that it has come.
#[derive(Debug)]
pub struct Pending(Arc<State>);

impl Readiness {
    /// Registers one more thing to wait for.
    pub fn wait_for(&self) -> Pending {
        self.0.pending.fetch_add(1, Ordering::AcqRel);
        Pending(Arc::clone(&self.0))
    }

    /// Turns readiness off for good: the process drains.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether nothing is pending and the process does not drain.
    pub fn is_ready(&self) -> bool {
        self.0.pending.load(Ordering::Acquire) == 0 && !self.0.draining.load(Ordering::Acquire)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_is_pending_and_not_after_drain() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.wait_for(), readiness.wait_for());
        assert!(!readiness.is_ready());
        drop((first, second));
        assert!(readiness.is_ready());
        readiness.drain();
        assert!(!readiness.is_ready());
    }
}
