//! One direction of a pair of connections.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{CopyError, CountBytes, Side, buffer};
use crate::transport::io::Io;

/// Buffers moved in a row before others get their turn: 1 MiB.
const TURN: usize = 16;

#[derive(Default)]
pub(super) struct Direction {
    /// Bytes that were read and not written, in a buffer of the thread.
    held: Option<Held>,
    source: Source,
    needs_flush: bool,
    passed: u64,
}

struct Held {
    buffer: Box<[u8]>,
    unwritten: Range<usize>,
}

#[derive(Default)]
enum Source {
    #[default]
    Open,
    /// It has ended, and the sink is to be told after what is held.
    Ending,
    /// It broke, which comes to light after what is held was written.
    Broken(io::Error),
    /// It has ended and the sink knows.
    Ended,
}

/// The end of a direction by a failure.
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Broken {
    pub(super) fn into_error(self, from: Side, to: Side) -> CopyError {
        let (side, source) = match self {
            Self::Source(error) => (from, error),
            Self::Sink(error) => (to, error),
        };
        CopyError { side, source }
    }
}

impl Direction {
    pub(super) const fn passed(&self) -> u64 {
        self.passed
    }

    /// Moves what can be moved. Ready when the direction has ended, and may be polled again then.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        counter: &dyn CountBytes,
    ) -> Poll<Result<(), Broken>> {
        for _turn in 0..TURN {
            ready!(self.poll_write(cx, sink, counter)).map_err(Broken::Sink)?;
            match std::mem::take(&mut self.source) {
                Source::Open if self.read(cx, source) => {}
                Source::Open => {
                    ready!(self.poll_flush(cx, sink)).map_err(Broken::Sink)?;
                    return Poll::Pending;
                }
                Source::Broken(error) => return Poll::Ready(Err(Broken::Source(error))),
                Source::Ending => {
                    self.source = Source::Ending;
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Broken::Sink)?;
                    self.source = Source::Ended;
                }
                Source::Ended => {
                    self.source = Source::Ended;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads until nothing is there or the buffer is full, so that many small reads (TLS gives
    /// out a record at a time) become one write. Returns whether anything has happened.
    fn read(&mut self, cx: &mut Context<'_>, source: &mut Io) -> bool {
        let mut bytes = buffer::take();
        let mut read = ReadBuf::new(&mut bytes);
        let mut pending = false;
        while read.remaining() > 0 {
            let before = read.filled().len();
            match Pin::new(&mut *source).poll_read(cx, &mut read) {
                Poll::Pending => pending = true,
                Poll::Ready(Ok(())) if read.filled().len() > before => continue,
                Poll::Ready(Ok(())) => self.source = Source::Ending,
                Poll::Ready(Err(error)) => self.source = Source::Broken(error),
            }
            break;
        }
        let filled = read.filled().len();
        if filled > 0 {
            self.held = Some(Held {
                buffer: bytes,
                unwritten: 0..filled,
            });
            return true;
        }
        buffer::give(bytes);
        !pending
    }

    /// Writes what is held and gives the buffer back.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Io,
        counter: &dyn CountBytes,
    ) -> Poll<io::Result<()>> {
        let Some(Held { buffer, unwritten }) = &mut self.held else {
            return Poll::Ready(Ok(()));
        };
        while unwritten.start < unwritten.end {
            let written = ready!(Pin::new(&mut *sink).poll_write(cx, &buffer[unwritten.clone()]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            unwritten.start += written;
            self.needs_flush = true;
            self.passed += written as u64;
            counter.add(written as u64);
        }
        if let Some(held) = self.held.take() {
            buffer::give(held.buffer);
        }
        Poll::Ready(Ok(()))
    }

    /// TLS may hold sealed records that the socket did not take.
    fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &mut Io) -> Poll<io::Result<()>> {
        if self.needs_flush {
            ready!(Pin::new(sink).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }
}
