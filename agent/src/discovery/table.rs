//! Watched values by key: found without a lock, forgotten when idle or when there are too many.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Watched;

/// How long a value stays that nobody uses.
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// Watched values by key.
pub(super) struct Table<K, T> {
    slots: ArcSwap<HashMap<K, Arc<Slot<T>>>>,
    /// Held while the map is copied and replaced; readers never take it.
    write: Mutex<()>,
    capacity: usize,
    began: Instant,
}

struct Slot<T> {
    watched: Arc<Watched<T>>,
    /// Milliseconds after `began`.
    used: AtomicU64,
}

impl<K: Clone + Eq + Hash, T> Table<K, T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: ArcSwap::default(),
            write: Mutex::default(),
            capacity,
            began: Instant::now(),
        }
    }

    /// The value of a key; if there is none, the one that `start` makes.
    ///
    /// Also tells whether another value had to be forgotten for it.
    pub(super) fn find_or_start(
        &self,
        key: &K,
        start: impl FnOnce() -> Arc<Watched<T>>,
    ) -> (Arc<Watched<T>>, bool) {
        if let Some(found) = self.find(key) {
            return (found, false);
        }
        let _write = self.write.lock();
        if let Some(found) = self.find(key) {
            return (found, false);
        }
        let mut slots = HashMap::clone(&self.slots.load());
        let evicted = slots.len() >= self.capacity;
        if evicted {
            let oldest = slots
                .iter()
                .min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed));
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                slots.remove(&oldest);
            }
        }
        let watched = start();
        let slot = Slot {
            watched: Arc::clone(&watched),
            used: AtomicU64::new(self.now()),
        };
        slots.insert(key.clone(), Arc::new(slot));
        self.slots.store(Arc::new(slots));
        (watched, evicted)
    }

    fn find(&self, key: &K) -> Option<Arc<Watched<T>>> {
        let slots = self.slots.load();
        let slot = slots.get(key)?;
        slot.used.store(self.now(), Ordering::Relaxed);
        Some(Arc::clone(&slot.watched))
    }

    /// Forgets what nobody holds and nobody asked for in [`IDLE`].
    pub(super) fn forget_idle(&self) {
        let _write = self.write.lock();
        let slots = self.slots.load_full();
        let limit = self.now().saturating_sub(millis(IDLE));
        let mut kept = HashMap::clone(&slots);
        kept.retain(|_, slot| {
            if Arc::strong_count(&slot.watched) > 1 {
                slot.used.store(self.now(), Ordering::Relaxed);
            }
            slot.used.load(Ordering::Relaxed) > limit
        });
        if kept.len() < slots.len() {
            self.slots.store(Arc::new(kept));
        }
    }

    /// Everything there is.
    pub(super) fn snapshot(&self) -> Vec<(K, Arc<Watched<T>>)> {
        let slots = self.slots.load();
        slots
            .iter()
            .map(|(key, slot)| (key.clone(), Arc::clone(&slot.watched)))
            .collect()
    }

    #[cfg(test)]
    pub(super) fn clear(&self) {
        self.slots.store(Arc::default());
    }

    pub(super) fn len(&self) -> usize {
        self.slots.load().len()
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_values_go_held_ones_stay_and_the_oldest_makes_room() {
        let table = Table::<u8, u8>::new(2);
        let start = || Arc::new(Watched::unknown());
        let held = table.find_or_start(&1, start).0;
        tokio::time::advance(Duration::from_secs(1)).await;
        table.find_or_start(&2, start);
        assert_eq!(table.len(), 2);
        tokio::time::advance(IDLE).await;
        table.forget_idle();
        let keys: Vec<_> = table.snapshot().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [1]);
        tokio::time::advance(Duration::from_secs(1)).await;
        let (second, evicted) = table.find_or_start(&2, start);
        assert!(!evicted);
        assert!(table.find_or_start(&3, start).1, "the table is full");
        assert!(Arc::ptr_eq(&second, &table.find_or_start(&2, start).0));
        assert!(
            !Arc::ptr_eq(&held, &table.find_or_start(&1, start).0),
            "evicted"
        );
    }
}
