//! Packets with descriptors over a Unix SOCK_SEQPACKET, from a tokio task.
//!
//! One packet is one message. Longer packets and more descriptors than the protocol allows are
//! errors, never cut short silently.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Longest packet, in bytes.
pub const MAX_BYTES: usize = 65_536;

/// Most descriptors beside one packet.
pub const MAX_FDS: usize = 64;

/// One packet.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// The descriptors, in the order in which they were sent.
    pub fds: Vec<OwnedFd>,
}

/// Why a packet could not be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection is broken.
    #[error("receive a packet")]
    Io(#[source] io::Error),
    /// The packet does not fit.
    #[error("packet longer than {MAX_BYTES} bytes")]
    TooLong,
    /// The descriptors do not fit.
    #[error("packet with more than {MAX_FDS} descriptors")]
    TooManyDescriptors,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Packets {
    socket: AsyncFd<OwnedFd>,
}

impl Packets {
    /// Wraps a connected, non-blocking socket. To be called within a runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: watch(socket)?,
        })
    }

    /// Receives one packet; `None` when the other end has closed.
    ///
    /// # Cancel safety
    /// A packet is received whole or not at all.
    ///
    /// # Errors
    /// When the connection is broken or the packet exceeds the limits.
    pub async fn receive(&self) -> Result<Option<Packet>, ReceiveError> {
        let received = self
            .socket
            .async_io(Interest::READABLE, |socket| receive(socket.as_fd()))
            .await;
        match received {
            Ok(Ok(packet)) => Ok(packet),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(ReceiveError::Io(error)),
        }
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                send(socket.as_fd(), bytes, fds)
            })
            .await
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Registers a socket with the runtime that the caller is in.
///
/// # Errors
/// When the runtime cannot watch it.
#[expect(
    unsafe_code,
    reason = "AsyncFd cannot know that a type keeps its descriptor"
)]
pub(super) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, and the
    // `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
}

type Received = Result<Option<Packet>, ReceiveError>;

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Err(ReceiveError::TooLong));
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Err(ReceiveError::TooManyDescriptors));
    }
    if message.bytes == 0 {
        return Ok(Ok(None));
    }
    bytes.truncate(message.bytes);
    Ok(Ok(Some(Packet { bytes, fds })))
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one packet"));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
