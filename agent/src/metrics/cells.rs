//! A small list that only grows: values by key, found and added without a lock.
//!
//! For keys of which a handful occur per series set, such as status codes. Looking one up walks a
//! linked list whose links are written once.

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

/// Values by key. At most `LIMIT` keys; what comes after that has no cell.
#[derive(Debug)]
pub(super) struct Cells<K, V, const LIMIT: usize> {
    first: Link<K, V>,
    len: AtomicUsize,
}

type Link<K, V> = OnceLock<Box<Cell<K, V>>>;

#[derive(Debug)]
struct Cell<K, V> {
    key: K,
    value: V,
    next: Link<K, V>,
}

impl<K, V, const LIMIT: usize> Default for Cells<K, V, LIMIT> {
    fn default() -> Self {
        Self {
            first: OnceLock::new(),
            len: AtomicUsize::new(0),
        }
    }
}

impl<K: PartialEq + Copy, V: Default, const LIMIT: usize> Cells<K, V, LIMIT> {
    /// The value of a key, made if it is new; `None` when the list is full.
    pub(super) fn get(&self, key: K) -> Option<&V> {
        let mut link = &self.first;
        loop {
            let cell = match link.get() {
                Some(cell) => cell,
                None if self.len.load(Ordering::Relaxed) >= LIMIT => return None,
                // Two threads may add at once: one of them wins the link, the other goes on
                // behind it.
                None => link.get_or_init(|| {
                    self.len.fetch_add(1, Ordering::Relaxed);
                    Box::new(Cell {
                        key,
                        value: V::default(),
                        next: OnceLock::new(),
                    })
                }),
            };
            if cell.key == key {
                return Some(&cell.value);
            }
            link = &cell.next;
        }
    }

    /// Every key and value, in the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        let mut link = &self.first;
        std::iter::from_fn(move || {
            let cell = link.get()?;
            link = &cell.next;
            Some((cell.key, &cell.value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Counter, *};

    #[test]
    fn keys_that_many_threads_add_at_once_have_one_cell_each() {
        let cells = Cells::<u16, Counter, 8>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..8000_u16 {
                        cells.get(n % 8).unwrap().increment();
                    }
                });
            }
        });
        let mut found: Vec<_> = cells.iter().map(|(k, v)| (k, v.value())).collect();
        found.sort_unstable();
        assert_eq!(found, (0..8).map(|n| (n, 4000)).collect::<Vec<_>>());
        assert!(cells.get(8).is_none(), "the list is full");
    }
}
