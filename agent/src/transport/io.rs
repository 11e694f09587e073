//! The one connection type of the agent: plain TCP or mesh TLS, with a place for bytes put back.
//!
//! Protocol detection reads ahead; what it has read becomes the prefix of a [`Rewind`], which is
//! given out before anything else is read. The prefix is freed as soon as it is empty.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// A connection with bytes that were read ahead and are still to be given out.
#[derive(Debug)]
pub struct Rewind<T> {
    prefix: BytesMut,
    io: T,
}

/// A connection, plain or with mesh TLS.
///
/// The TLS variants are boxed: a session takes more than a kilobyte, and tasks hold an `Io` in
/// several places of their future.
#[derive(Debug)]
pub enum Io {
    /// No TLS of ours.
    Plain(Rewind<TcpStream>),
    /// Mesh TLS that we asked for.
    ClientTls(Rewind<Box<client::TlsStream<TcpStream>>>),
    /// Mesh TLS that we terminate.
    ServerTls(Rewind<Box<server::TlsStream<Rewind<TcpStream>>>>),
}

impl<T> Rewind<T> {
    /// Wraps a connection of which nothing was read.
    pub fn new(io: T) -> Self {
        Self {
            prefix: BytesMut::new(),
            io,
        }
    }

    /// What was read ahead.
    pub fn buffered(&self) -> &[u8] {
        &self.prefix
    }

    /// The connection below.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Drops the first `count` bytes of what was read ahead.
    ///
    /// # Panics
    /// When fewer were read.
    pub fn consume(&mut self, count: usize) {
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            self.prefix = BytesMut::new();
        }
    }
}

impl<T: AsyncRead + Unpin> Rewind<T> {
    /// Reads once more, behind what was read ahead, and returns how much came; 0 is the end.
    ///
    /// Makes room for `room` bytes first if there is none.
    ///
    /// # Errors
    /// When the connection fails.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn fill(&mut self, room: usize) -> io::Result<usize> {
        if self.prefix.capacity() == self.prefix.len() {
            self.prefix.reserve(room);
        }
        self.io.read_buf(&mut self.prefix).await
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewind<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $body:expr) => {
        match $self {
            Io::Plain($io) => $body,
            Io::ClientTls($io) => $body,
            Io::ServerTls($io) => $body,
        }
    };
}

impl Io {
    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(io) => &io.io,
            Self::ClientTls(io) => io.io.get_ref().0,
            Self::ServerTls(io) => &io.io.get_ref().0.io,
        }
    }

    /// Whether the connection has mesh TLS.
    pub const fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Address of the other end.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// What was read ahead.
    pub fn buffered(&self) -> &[u8] {
        each!(self, io => io.buffered())
    }

    /// See [`Rewind::fill`].
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn fill(&mut self, room: usize) -> io::Result<usize> {
        each!(self, io => io.fill(room).await)
    }

    /// See [`Rewind::consume`].
    pub fn consume(&mut self, count: usize) {
        each!(self, io => io.consume(count));
    }

    /// Makes the kernel reset the connection when it is dropped, so that the peer sees a broken
    /// stream as broken and not as finished.
    pub fn reset_on_drop(&self) {
        if let Err(error) = self.tcp().set_zero_linger() {
            tracing::trace!(%error, "connection cannot be reset");
        }
    }
}

impl From<TcpStream> for Io {
    fn from(io: TcpStream) -> Self {
        Self::Plain(Rewind::new(io))
    }
}

impl From<Rewind<TcpStream>> for Io {
    fn from(io: Rewind<TcpStream>) -> Self {
        Self::Plain(io)
    }
}

impl From<client::TlsStream<TcpStream>> for Io {
    fn from(io: client::TlsStream<TcpStream>) -> Self {
        Self::ClientTls(Rewind::new(Box::new(io)))
    }
}

impl From<server::TlsStream<Rewind<TcpStream>>> for Io {
    fn from(io: server::TlsStream<Rewind<TcpStream>>) -> Self {
        Self::ServerTls(Rewind::new(Box::new(io)))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut *self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::tls::testing::{soon, tcp_pair};

    #[tokio::test]
    async fn bytes_that_were_read_ahead_come_first_and_in_any_portion() {
        let (mut near, far) = tcp_pair().await;
        let mut far = Rewind::new(far);
        near.write_all(b"abcdef").await.unwrap();
        while far.buffered().len() < 6 {
            soon(far.fill(1)).await.unwrap();
        }
        far.consume(1);
        near.write_all(b"ghi").await.unwrap();
        near.shutdown().await.unwrap();
        let mut first = [0; 2];
        soon(far.read_exact(&mut first)).await.unwrap();
        let mut rest = Vec::new();
        soon(far.read_to_end(&mut rest)).await.unwrap();
        assert_eq!((&first[..], &rest[..]), (&b"bc"[..], &b"defghi"[..]));
    }

    #[tokio::test]
    async fn a_connection_writes_vectors_and_stays_small() {
        let (near, _far) = tcp_pair().await;
        assert!(Io::from(near).is_write_vectored());
        assert!(size_of::<Io>() <= 96, "{} bytes", size_of::<Io>());
    }
}
