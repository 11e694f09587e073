//! Passes bytes between two connections until both have ended.
//!
//! One task moves both directions. Bytes are read into a buffer of the thread and written at
//! once, so that a connection which is quiet, or keeps up, has no buffer of its own. When the
//! receiving side is slow, the direction keeps the buffer, and reads nothing until it is written:
//! 64 KiB per direction is all that a stalled reader can make this hold.
//!
//! The end of one direction is passed on as such (half-close) while the other goes on. A stream
//! that breaks (a reset; TLS without its closing alert) breaks the other side too: to let it look
//! finished would hide that bytes are missing.

mod buffer;
mod direction;

use std::{
    future::poll_fn,
    io,
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
};

use self::direction::Direction;
use super::io::Io;

/// Is told how many bytes were passed on, while they are.
pub trait CountBytes: Send + Sync {
    /// So many more bytes were read on one side and written to the other.
    fn add(&self, bytes: u64);
}

/// The simplest count of bytes.
#[derive(Debug, Default)]
pub struct ByteCounter(AtomicU64);

/// How many bytes were passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// From the first connection to the second.
    pub forth: u64,
    /// From the second to the first.
    pub back: u64,
}

/// On which connection passing bytes failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On the first.
    First,
    /// On the second.
    Second,
}

/// A connection broke.
#[derive(Debug, thiserror::Error)]
#[error("connection broke while bytes were passed on")]
pub struct CopyError {
    /// Which.
    pub side: Side,
    /// How.
    pub source: io::Error,
}

impl ByteCounter {
    /// What was counted.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl CountBytes for ByteCounter {
    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl CopyError {
    /// Whether this is how connections end in ordinary life: reset or closed by the peer.
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::NotConnected
                | io::ErrorKind::ConnectionAborted
        )
    }
}

/// Passes bytes both ways until both directions have ended. `counters` are told of bytes from
/// `first` to `second`, and back.
///
/// # Errors
/// When either connection breaks; the other is reset then.
///
/// # Cancel safety
/// Dropping the future closes both connections.
pub async fn duplex(
    mut first: Io,
    mut second: Io,
    counters: (&dyn CountBytes, &dyn CountBytes),
) -> Result<Passed, CopyError> {
    let mut forth = Direction::default();
    let mut back = Direction::default();
    let ended: Result<(), CopyError> = poll_fn(|cx| {
        let there = forth
            .poll(cx, &mut first, &mut second, counters.0)
            .map_err(|broken| broken.into_error(Side::First, Side::Second))?;
        let here = back
            .poll(cx, &mut second, &mut first, counters.1)
            .map_err(|broken| broken.into_error(Side::Second, Side::First))?;
        match there.is_ready() && here.is_ready() {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    })
    .await;
    match ended {
        Ok(()) => Ok(Passed {
            forth: forth.passed(),
            back: back.passed(),
        }),
        Err(error) => {
            let other = match error.side {
                Side::First => &second,
                Side::Second => &first,
            };
            other.reset_on_drop();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests;
