//! How much one pod may have open at once, so that it cannot starve its neighbours.
//!
//! A limit counts what is in use and what was refused. Nothing waits: who is over the limit is
//! refused at once. The defaults are generous: they stop runaways, they do not shape traffic.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The limits of one pod, for all workers together.
#[derive(Debug)]
pub struct Limits {
    /// Connections that were accepted, both directions.
    pub connections: Limit,
    /// Requests from their headers to the headers of the response.
    pub requests: Limit,
    /// TLS handshakes with peers that dialled the pod.
    pub handshakes: Limit,
}

/// One limit.
#[derive(Debug)]
pub struct Limit {
    max: u32,
    used: AtomicU32,
    refused: AtomicU64,
}

/// One use of what is limited, until it is dropped.
#[derive(Debug)]
#[must_use = "the use ends when this is dropped"]
pub struct Permit<'limit>(&'limit Limit);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Limit::new(20_000),
            // As many as Linkerd allows one proxy.
            requests: Limit::new(100_000),
            handshakes: Limit::new(1_000),
        }
    }
}

impl Limit {
    /// Makes a limit of `max` uses at once.
    pub const fn new(max: u32) -> Self {
        Self {
            max,
            used: AtomicU32::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Begins a use, or refuses it and counts that.
    pub fn acquire(&self) -> Option<Permit<'_>> {
        let before = self.used.fetch_add(1, Relaxed);
        let permit = Permit(self);
        if before < self.max {
            return Some(permit);
        }
        self.refused.fetch_add(1, Relaxed);
        None
    }

    /// How many uses there are.
    pub fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// How many were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_refused_and_counted() {
        let limit = Limit::new(2);
        let held = [limit.acquire(), limit.acquire()];
        assert!(held.iter().all(Option::is_some));
        assert!(limit.acquire().is_none());
        assert_eq!((limit.used(), limit.refused()), (2, 1));
        drop(held);
        assert!(limit.acquire().is_some());
        assert_eq!(limit.used(), 0);
    }
}
