//! A connection whose bytes, opening and closing are counted.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    copy::{CopyError, CountBytes, Passed, Side, duplex},
    io::Io,
};
use crate::metrics::TcpMetrics;

/// One open connection of a series: counted as opened when made, as closed when dropped.
#[derive(Debug)]
pub struct Opened {
    metrics: Arc<TcpMetrics>,
    errno: Option<&'static str>,
}

/// A connection that counts itself. Bytes are those inside of mesh TLS.
#[derive(Debug)]
pub struct Counted {
    io: Io,
    opened: Opened,
}

impl Opened {
    /// Counts a connection as opened.
    pub fn new(metrics: Arc<TcpMetrics>) -> Self {
        metrics.open();
        Self {
            metrics,
            errno: None,
        }
    }

    /// Its series.
    pub fn metrics(&self) -> &TcpMetrics {
        &self.metrics
    }

    /// Says that the connection failed; the first failure counts.
    pub fn failed(&mut self, error: &io::Error) {
        self.errno.get_or_insert(errno(error));
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.metrics.close(self.errno);
    }
}

impl Counted {
    /// Joins a connection and its count.
    pub const fn new(io: Io, opened: Opened) -> Self {
        Self { io, opened }
    }

    fn note<T>(&mut self, result: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = result {
            self.opened.failed(error);
        }
    }

    fn written(&mut self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = result {
            self.opened.metrics.write(*count as u64);
        }
        self.note(result);
    }
}

/// Passes bytes both ways between two connections until both directions have ended, and counts
/// them at both.
///
/// # Errors
/// When either connection breaks; the other is reset then.
///
/// # Cancel safety
/// Dropping the future closes both connections.
pub async fn pass(first: (Io, Opened), second: (Io, Opened)) -> Result<Passed, CopyError> {
    let (first, mut first_opened) = first;
    let (second, mut second_opened) = second;
    let forth = Way {
        from: &first_opened.metrics,
        to: &second_opened.metrics,
    };
    let back = Way {
        from: &second_opened.metrics,
        to: &first_opened.metrics,
    };
    let passed = duplex(first, second, (&forth, &back)).await;
    if let Err(error) = &passed {
        match error.side {
            Side::First => first_opened.failed(&error.source),
            Side::Second => second_opened.failed(&error.source),
        }
    }
    passed
}

/// Bytes that come from one side and go to the other.
struct Way<'metrics> {
    from: &'metrics TcpMetrics,
    to: &'metrics TcpMetrics,
}

impl CountBytes for Way<'_> {
    fn add(&self, bytes: u64) {
        self.from.read(bytes);
        self.to.write(bytes);
    }
}

/// The error as `tcp_close_total` names it.
fn errno(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the standard library's list grows; what is not named is one value"
    )]
    match error.kind() {
        Kind::ConnectionReset => "ECONNRESET",
        Kind::BrokenPipe => "EPIPE",
        Kind::TimedOut => "ETIMEDOUT",
        Kind::ConnectionAborted => "ECONNABORTED",
        Kind::NotConnected => "ENOTCONN",
        Kind::HostUnreachable => "EHOSTUNREACH",
        Kind::NetworkUnreachable => "ENETUNREACH",
        Kind::UnexpectedEof => "EOF",
        Kind::InvalidData => "EPROTO",
        _ => "EIO",
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if result.is_ready() {
            let count = buf.filled().len() - before;
            self.opened.metrics.read(count as u64);
            self.note(&result);
        }
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.note(&result);
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that is gone already makes this fail, which says nothing about the transfer.
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
