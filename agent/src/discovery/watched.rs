//! A value that a watch keeps up to date.
//!
//! Readers load it without waiting; whoever comes before the first answer waits with a bound. A
//! value once published stays until a better one comes: a broken stream never empties it. The
//! watch behind it ends when the last holder drops it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

/// A value that is not there yet, or is kept up to date.
#[derive(Debug)]
pub struct Watched<T> {
    value: ArcSwapOption<T>,
    version: watch::Sender<u64>,
    _watch: Option<DropGuard>,
}

impl<T> Watched<T> {
    /// Makes one without a value. `watch` is dropped with it, which ends the watch that feeds it.
    pub(crate) fn pending(watch: Option<DropGuard>) -> Self {
        Self {
            value: ArcSwapOption::empty(),
            version: watch::Sender::new(0),
            _watch: watch,
        }
    }

    /// Makes one that has a value and no watch; `publish` changes it.
    pub fn fixed(value: T) -> Self {
        let watched = Self::pending(None);
        watched.publish(value);
        watched
    }

    /// Makes one that never gets a value by itself.
    pub fn unknown() -> Self {
        Self::pending(None)
    }

    /// The present value; `None` before the first answer. Never waits.
    pub fn load(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// Grows with every change; 0 before the first answer.
    pub fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Tells of changes: the value is [`Self::version`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The present value, or the first one if it comes within `limit`.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn ready(&self, limit: Duration) -> Option<Arc<T>> {
        if let Some(value) = self.load() {
            return Some(value);
        }
        let mut version = self.version.subscribe();
        let first = version.wait_for(|version| *version > 0);
        let arrived = matches!(tokio::time::timeout(limit, first).await, Ok(Ok(_)));
        if arrived { self.load() } else { None }
    }

    /// Replaces the value.
    pub fn publish(&self, value: T) {
        self.value.store(Some(Arc::new(value)));
        self.version.send_modify(|version| *version += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_early_waits_for_the_first_value_and_no_longer_than_the_limit() {
        let watched = Arc::new(Watched::unknown());
        assert_eq!(watched.ready(Duration::from_secs(1)).await, None::<Arc<u8>>);
        let mut tasks = tokio::task::JoinSet::new();
        let waiter = Arc::clone(&watched);
        tasks.spawn(async move { waiter.ready(Duration::from_secs(1)).await });
        tokio::task::yield_now().await;
        watched.publish(7_u8);
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), Some(Arc::new(7)));
        assert_eq!((watched.load(), watched.version()), (Some(Arc::new(7)), 1));
    }
}
