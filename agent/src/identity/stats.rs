//! What the metrics show of certificates: plain numbers that anyone may read at any time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Numbers over all identities of the node.
#[derive(Debug, Default)]
pub struct Stats {
    /// Certificates installed.
    pub refreshed: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Certificates that ended before there was another.
    pub expired: AtomicU64,
    /// Trust bundles installed.
    pub bundles: AtomicU64,
    /// Trust bundles refused.
    pub bundles_refused: AtomicU64,
}

/// Numbers of one identity, for `control_identity_cert_*`.
#[derive(Debug, Default)]
pub struct IdentityStats {
    /// Certificates installed: `refreshes_total{result="ok"}`.
    pub refreshed: AtomicU64,
    /// Attempts that failed: `refreshes_total{result="error"}`.
    pub failed: AtomicU64,
    /// End of the certificate, seconds since 1970; 0 before the first.
    pub expiration_timestamp: AtomicU64,
    /// When the certificate was installed, seconds since 1970; 0 before the first.
    pub refresh_timestamp: AtomicU64,
}

pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
