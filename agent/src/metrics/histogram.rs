//! Latencies by bucket, in Linkerd's buckets.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds in milliseconds, inclusive; a last bucket takes the rest.
pub(super) const BOUNDS: [u64; 25] = [
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 3_000, 4_000, 5_000,
    10_000, 20_000, 30_000, 40_000, 50_000,
];

/// Counts of latencies by bucket, and their sum in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts one latency. Fractions of a millisecond are cut off, as Linkerd does.
    pub(super) fn observe(&self, latency: Duration) {
        let millis = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < millis);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(millis, Ordering::Relaxed);
    }

    /// Cumulative counts, one for each bound and one for the rest.
    pub(super) fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut total = 0;
        std::array::from_fn(|bucket| {
            total += self.buckets[bucket].load(Ordering::Relaxed);
            total
        })
    }

    /// Sum of all latencies in milliseconds.
    pub(super) fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_the_last_bucket_takes_the_rest() {
        let histogram = Histogram::default();
        for (micros, bucket) in [
            (0, 0),
            (1_000, 0),
            (1_999, 0),
            (2_000, 1),
            (50_000, 9),
            (51_000, 10),
            (50_000_000, 24),
            (50_001_000, 25),
        ] {
            let before = histogram.cumulative();
            histogram.observe(Duration::from_micros(micros));
            let after = histogram.cumulative();
            let first = (0..after.len()).find(|n| after[*n] != before[*n]);
            assert_eq!(first, Some(bucket), "{micros} µs");
        }
    }
}
