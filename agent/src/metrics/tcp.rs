//! Connections and bytes of one set of labels.

use super::{Counter, cells::Cells};

/// Counters of one set of labels. Counting never waits.
#[derive(Debug, Default)]
pub struct TcpMetrics {
    pub(super) opened: Counter,
    pub(super) read: Counter,
    pub(super) written: Counter,
    pub(super) closed: Cells<Option<&'static str>, Counter, 32>,
}

impl TcpMetrics {
    /// Counts a connection that has opened.
    pub fn open(&self) {
        self.opened.increment();
    }

    /// Counts a connection that has closed; `errno` as in `ECONNRESET`, if it was an error.
    pub fn close(&self, errno: Option<&'static str>) {
        // The names of errors are fewer than the cells.
        if let Some(closed) = self.closed.get(errno) {
            closed.increment();
        }
    }

    /// Counts bytes read from the peer.
    pub fn read(&self, count: u64) {
        self.read.add(count);
    }

    /// Counts bytes written to the peer.
    pub fn write(&self, count: u64) {
        self.written.add(count);
    }

    /// How many connections are open.
    pub(super) fn open_now(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|(_, count)| count.value()).sum();
        // Read after `closed`, so that a connection that opens and closes meanwhile cannot make
        // the difference negative.
        self.opened.value().saturating_sub(closed)
    }
}
