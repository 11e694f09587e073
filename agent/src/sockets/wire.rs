//! Packets with descriptors over a Unix socket of type SEQPACKET.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Longest packet.
pub(super) const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors beside one packet.
pub(super) const MAX_DESCRIPTORS: usize = 64;

const CONTROL: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Why a packet was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("socket to weft-node")]
    Io(#[from] io::Error),
    /// The other end has closed it.
    #[error("weft-node closed the connection")]
    Closed,
    /// A packet was longer than 65,536 bytes, or had more than 64 descriptors beside it.
    #[error("packet of weft-node is too long")]
    Truncated,
    /// A packet does not parse.
    #[error("packet of weft-node does not parse")]
    Malformed(#[from] prost::DecodeError),
    /// A packet makes no sense where it came.
    #[error("weft-node sent {0}")]
    Unexpected(&'static str),
}

/// One end of a connection.
pub(super) struct Packets(AsyncFd<OwnedFd>);

impl Packets {
    /// Takes a socket that is connected and does not block.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe for types that do not own their descriptor; OwnedFd does"
    )]
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Connects; never waits, because a Unix socket is connected at once or not at all.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::new(socket)
    }

    /// Sends one packet.
    pub(super) async fn send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, |socket| {
                let mut space = [MaybeUninit::uninit(); CONTROL];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty()
                    && !control.push(SendAncillaryMessage::ScmRights(descriptors))
                {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let flags = SendFlags::NOSIGNAL;
                let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
                match sent == bytes.len() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::WriteZero.into()),
                }
            })
            .await
    }

    /// Receives one packet into `buffer`, which has [`MAX_PACKET`] bytes; its length, and the
    /// descriptors beside it.
    ///
    /// # Cancel safety
    /// A packet is taken whole or not at all.
    pub(super) async fn receive(
        &self,
        buffer: &mut [u8],
    ) -> Result<(usize, Vec<OwnedFd>), WireError> {
        let mut descriptors = Vec::new();
        let (length, flags) = self
            .0
            .async_io(Interest::READABLE, |socket| {
                let mut space = [MaybeUninit::uninit(); CONTROL];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::CMSG_CLOEXEC;
                let iov = &mut [IoSliceMut::new(buffer)];
                let received = recvmsg(socket, iov, &mut control, flags)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        descriptors.extend(rights);
                    }
                }
                Ok((received.bytes, received.flags))
            })
            .await?;
        if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(WireError::Truncated);
        }
        match length {
            0 => Err(WireError::Closed),
            _ => Ok((length, descriptors)),
        }
    }
}
