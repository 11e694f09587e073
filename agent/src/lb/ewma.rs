//! Load of one endpoint: an estimate that jumps up with a slow answer and sinks slowly after it.
//!
//! The estimate is shared by all workers and pods of a node: more samples make it better. Updates
//! are relaxed and may overwrite each other; a lost sample costs nothing that the next one would
//! not repair.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A point in time as the span since one fixed moment, the same for all users of a [`Load`].
pub type Time = Duration;

/// What an endpoint that never answered is taken to need (Linkerd's default).
const DEFAULT_RTT: Duration = Duration::from_millis(30);
/// After this long without a sample an estimate has sunk to 37 % (Linkerd's default).
const DECAY: Duration = Duration::from_secs(10);

/// Load of one endpoint.
#[derive(Debug, Default)]
pub struct Load {
    /// Estimated round-trip time, the bits of an `f64`. Zero: nobody has asked for it yet.
    rtt_bits: AtomicU64,
    updated_nanos: AtomicU64,
    pending: AtomicU32,
}

/// One use of an endpoint, in flight until it is finished or dropped.
#[derive(Debug)]
pub struct Lease {
    load: Arc<Load>,
    began: Time,
}

impl Load {
    /// Begins a use of the endpoint.
    pub fn lease(self: &Arc<Self>, now: Time) -> Lease {
        self.pending.fetch_add(1, Relaxed);
        Lease {
            load: Arc::clone(self),
            began: now,
        }
    }

    /// What it would cost to use the endpoint: the lower, the better.
    pub fn cost(&self, now: Time) -> f64 {
        self.estimate(now) * (f64::from(self.pending.load(Relaxed)) + 1.0)
    }

    /// Uses that are in flight.
    pub fn pending(&self) -> u32 {
        self.pending.load(Relaxed)
    }

    /// Estimated round-trip time in nanoseconds, sunk by the time that passed since the last sample.
    ///
    /// Sinking is what lets an endpoint that nobody uses be tried again. The first question starts
    /// it: an endpoint that never answered sinks from the default like any other.
    fn estimate(&self, now: Time) -> f64 {
        let rtt = f64::from_bits(self.rtt_bits.load(Relaxed));
        if rtt == 0.0 {
            self.store(now, nanos(DEFAULT_RTT));
            return nanos(DEFAULT_RTT);
        }
        rtt * self.remaining(now)
    }

    fn record(&self, now: Time, rtt: Duration) {
        let sample = nanos(rtt).max(1.0);
        let known = f64::from_bits(self.rtt_bits.load(Relaxed));
        let estimate = if sample > known {
            sample
        } else {
            let weight = self.remaining(now);
            known * weight + sample * (1.0 - weight)
        };
        self.store(now, estimate);
    }

    fn store(&self, now: Time, estimate: f64) {
        self.rtt_bits.store(estimate.to_bits(), Relaxed);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.updated_nanos.store(now, Relaxed);
    }

    fn remaining(&self, now: Time) -> f64 {
        let updated = Duration::from_nanos(self.updated_nanos.load(Relaxed));
        (-now.saturating_sub(updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

impl Lease {
    /// Ends the use with a result: the time that it took counts.
    pub fn finish(self, now: Time) {
        self.load.record(now, now.saturating_sub(self.began));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.load.pending.fetch_sub(1, Relaxed);
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_a_fast_one_slowly() {
        let load = Arc::new(Load::default());
        assert!((load.cost(millis(0)) - nanos(DEFAULT_RTT)).abs() < 1.0);
        load.lease(millis(0)).finish(millis(10));
        assert!(load.cost(millis(10)) > nanos(millis(29)));
        load.lease(millis(10)).finish(millis(110));
        assert!((load.cost(millis(110)) - nanos(millis(100))).abs() < 1.0);
        load.lease(millis(110)).finish(millis(111));
        assert!(load.cost(millis(111)) > nanos(millis(99)));
        assert!(load.cost(millis(10_111)) < nanos(millis(40)));
    }

    #[test]
    fn equally_fast_endpoints_take_turns() {
        let loads = [Arc::new(Load::default()), Arc::new(Load::default())];
        let mut uses = [0, 0];
        for request in 0..40 {
            let now = millis(5 * request);
            let costs = [loads[0].cost(now), loads[1].cost(now)];
            let cheaper = usize::from(costs[1] < costs[0]);
            uses[cheaper] += 1;
            loads[cheaper].lease(now).finish(now + millis(2));
        }
        assert_eq!(uses, [20, 20]);
    }

    #[test]
    fn leases_in_flight_multiply_the_cost() {
        let load = Arc::new(Load::default());
        let leases = [load.lease(millis(0)), load.lease(millis(0))];
        assert!((load.cost(millis(0)) - 3.0 * nanos(DEFAULT_RTT)).abs() < 1.0);
        drop(leases);
        assert_eq!(load.pending(), 0);
    }
}
