//! The members of a family: handles by label text, capped, and dropped when nobody uses them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Counter, HttpMetrics, TcpMetrics};

/// How long a set of labels stays after its last count and its last holder.
const RETAIN_IDLE: Duration = Duration::from_secs(600);

/// What can be asked for a number that changes whenever it counts something.
pub(super) trait Activity: Default {
    /// The number.
    fn activity(&self) -> u64;
}

/// Handles by label text.
#[derive(Debug)]
pub(super) struct Series<T> {
    entries: BTreeMap<Arc<str>, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    handle: Arc<T>,
    /// When `activity` was last seen to change.
    since: Instant,
    activity: u64,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }
}

impl<T: Activity> Series<T> {
    /// The handle of a set of labels, made if it is new; `None` at `limit`.
    pub(super) fn resolve(&mut self, labels: Arc<str>, limit: usize) -> Option<Arc<T>> {
        if let Some(entry) = self.entries.get(&labels) {
            return Some(Arc::clone(&entry.handle));
        }
        if self.entries.len() >= limit {
            return None;
        }
        let handle = Arc::new(T::default());
        let entry = Entry {
            handle: Arc::clone(&handle),
            since: Instant::now(),
            activity: 0,
        };
        self.entries.insert(labels, entry);
        Some(handle)
    }

    /// Every set of labels with its handle, ordered by text.
    pub(super) fn snapshot(&self) -> Vec<(Arc<str>, Arc<T>)> {
        self.entries
            .iter()
            .map(|(labels, entry)| (Arc::clone(labels), Arc::clone(&entry.handle)))
            .collect()
    }

    /// Drops what nobody holds and nothing was counted in for [`RETAIN_IDLE`].
    pub(super) fn retire(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            let activity = entry.handle.activity();
            if activity != entry.activity || Arc::strong_count(&entry.handle) > 1 {
                entry.activity = activity;
                entry.since = now;
            }
            now.duration_since(entry.since) < RETAIN_IDLE
        });
    }
}

impl Activity for Counter {
    fn activity(&self) -> u64 {
        self.value()
    }
}

impl Activity for HttpMetrics {
    fn activity(&self) -> u64 {
        let responses = self.responses.iter().map(|(_, count)| count.value());
        self.requests.value().wrapping_add(responses.sum())
    }
}

impl Activity for TcpMetrics {
    fn activity(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|(_, count)| count.value()).sum();
        [&self.opened, &self.read, &self.written]
            .into_iter()
            .fold(closed, |sum, count| sum.wrapping_add(count.value()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_series_go_when_nobody_holds_them() {
        let mut series = Series::<Counter>::default();
        let held = series.resolve("held".into(), 3).unwrap();
        series.resolve("idle".into(), 3).unwrap();
        let busy = series.resolve("busy".into(), 3).unwrap();
        assert!(series.resolve("over".into(), 3).is_none(), "capped");
        tokio::time::advance(RETAIN_IDLE).await;
        busy.increment();
        drop(busy);
        series.retire(Instant::now());
        let left: Vec<_> = series
            .snapshot()
            .into_iter()
            .map(|(text, _)| text)
            .collect();
        assert_eq!(left, ["busy".into(), Arc::from("held")]);
        drop(held);
    }
}
