//! How long to wait before trying again.

use std::time::Duration;

/// Waits that double from `min` to `max`, each shortened by up to `jitter` of itself.
///
/// Pure: the caller passes the draw, from 0 to 1.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
    next: Duration,
}

impl Backoff {
    /// Makes a backoff. `jitter` is a share from 0 (none) to 1.
    pub fn new(min: Duration, max: Duration, jitter: f64) -> Self {
        Self {
            min,
            max,
            jitter: jitter.clamp(0.0, 1.0),
            next: min,
        }
    }

    /// The next wait.
    pub fn next(&mut self, draw: f64) -> Duration {
        let wait = self.next.mul_f64(1.0 - self.jitter * draw.clamp(0.0, 1.0));
        self.next = (self.next * 2).min(self.max);
        wait
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5), 0.5);
        let waits: Vec<_> = (0..4).map(|_| backoff.next(0.0)).collect();
        assert_eq!(waits, [seconds(1), seconds(2), seconds(4), seconds(5)]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(500));
    }
}
