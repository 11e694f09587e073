//! Whether a target can be opened: after a failure it is left alone for a while, longer each time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use weft_runtime::backoff::Backoff;

const MIN: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(60);
const JITTER: f64 = 0.1;

/// What is known of a target.
#[derive(Debug)]
pub struct Health {
    failing: AtomicBool,
    failures: AtomicU32,
    retry: Mutex<Retry>,
    /// Wakes those who wait for any target of the pod.
    recovered: Arc<Notify>,
}

#[derive(Debug)]
struct Retry {
    backoff: Backoff,
    at: Option<Instant>,
    /// Somebody tries it at present.
    claimed: bool,
}

impl Health {
    /// Makes one of which nothing is known. `recovered` is told when a target that had failed
    /// can be opened again.
    pub fn new(recovered: Arc<Notify>) -> Self {
        Self {
            failing: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            retry: Mutex::new(Retry {
                backoff: Backoff::new(MIN, MAX, JITTER),
                at: None,
                claimed: false,
            }),
            recovered,
        }
    }

    /// Whether the last try failed and it is too early for another.
    pub fn is_failing(&self, now: Instant) -> bool {
        self.retry_at().is_some_and(|at| at > now)
    }

    /// When a target that failed may be tried again; `None` if it did not fail.
    pub fn retry_at(&self) -> Option<Instant> {
        if !self.failing.load(Relaxed) {
            return None;
        }
        self.retry.lock().at
    }

    /// Whether the target has failed before. If so, the caller is the one who tries it again:
    /// nobody else does before `limit` has passed.
    pub fn claim(&self, now: Instant, limit: Duration) -> bool {
        let has_failed = self.failing.load(Relaxed);
        if has_failed {
            let mut retry = self.retry.lock();
            retry.at = Some(now + limit);
            retry.claimed = true;
        }
        has_failed
    }

    /// How often opening has failed, ever.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// Notes how a try went.
    pub(super) fn note(&self, went_well: bool) {
        if went_well {
            if self.failing.swap(false, Relaxed) {
                let mut retry = self.retry.lock();
                retry.at = None;
                retry.claimed = false;
                retry.backoff.reset();
                drop(retry);
                self.recovered.notify_waiters();
            }
            return;
        }
        let mut retry = self.retry.lock();
        let now = Instant::now();
        // Several tries that were under way at once count as one failure.
        if retry.claimed || retry.at.is_none_or(|at| at <= now) {
            retry.claimed = false;
            let wait = retry.backoff.next(rand::random());
            retry.at = Some(now + wait);
        }
        self.failing.store(true, Relaxed);
        self.failures.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_target_that_failed_is_left_alone_for_longer_each_time() {
        let health = Health::new(Arc::default());
        assert!(!health.is_failing(Instant::now()));
        for wait in [100, 200, 400] {
            health.note(false);
            health.note(false);
            assert!(health.is_failing(Instant::now()));
            tokio::time::advance(Duration::from_millis(wait)).await;
            assert!(!health.is_failing(Instant::now()), "{wait} ms");
        }
        health.note(true);
        assert_eq!(health.retry_at(), None);
        health.note(false);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(
            !health.is_failing(Instant::now()),
            "starts over after a success"
        );
    }
}
