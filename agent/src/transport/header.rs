//! The transport header: says, inside mesh TLS, which port a connection is for.
//!
//! A preface of 23 bytes, the length as u32 in network order, and a protobuf message. Written by
//! clients when the handshake has settled on [`TRANSPORT_ALPN`](crate::tls::TRANSPORT_ALPN).

use std::{io, num::NonZeroU16, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

use super::io::Io;

const PREFACE: &[u8; 23] = b"transport.l5d.io/v1\r\n\r\n";
const HEAD: usize = PREFACE.len() + size_of::<u32>();
/// Longest header that is read, the head included.
const MAX: usize = 64 * 1024;
/// Bytes read at once; a header with a long name fits.
const ROOM: usize = 512;

/// What a client says about the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// Port of the application.
    pub port: NonZeroU16,
    /// Host that is wanted, at a gateway.
    pub name: Option<Arc<str>>,
    /// What is spoken; `None` is opaque.
    pub session: Option<Session>,
}

/// What is spoken on a connection, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Session {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The connection failed or ended.
    #[error("read the transport header")]
    Io(#[from] io::Error),
    /// The header was not complete in time.
    #[error("no transport header within {0:?}")]
    TimedOut(Duration),
    /// Something else was sent.
    #[error("no transport header where one was agreed on")]
    Preface,
    /// It is too long to be one.
    #[error("transport header of {0} bytes is longer than 64 KiB")]
    TooLong(u32),
    /// It does not parse.
    #[error("transport header does not parse")]
    Malformed(#[source] prost::DecodeError),
    /// The port is none.
    #[error("transport header names port {0}")]
    Port(i32),
}

impl HeaderError {
    /// The error as metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "i/o",
            Self::TimedOut(_) => "transport header timeout",
            Self::Preface | Self::TooLong(_) | Self::Malformed(_) | Self::Port(_) => {
                "transport header invalid"
            }
        }
    }
}

/// Reads a header; what follows it stays to be read.
///
/// # Errors
/// When there is none, or not within `limit`.
pub async fn read(io: &mut Io, limit: Duration) -> Result<TransportHeader, HeaderError> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some((header, length)) = decode(io.buffered())? {
            io.consume(length);
            return Ok(header);
        }
        let read = timeout_at(deadline, io.fill(ROOM))
            .await
            .map_err(|_elapsed| HeaderError::TimedOut(limit))??;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// A header at the beginning of the bytes and its length; `None` when more is needed.
fn decode(bytes: &[u8]) -> Result<Option<(TransportHeader, usize)>, HeaderError> {
    let seen = bytes.len().min(PREFACE.len());
    if bytes[..seen] != PREFACE[..seen] {
        return Err(HeaderError::Preface);
    }
    let Some((length, rest)) = bytes
        .get(PREFACE.len()..)
        .and_then(<[u8]>::split_first_chunk)
    else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    let wanted = usize::try_from(length)
        .ok()
        .filter(|wanted| HEAD + wanted <= MAX)
        .ok_or(HeaderError::TooLong(length))?;
    let Some(message) = rest.get(..wanted) else {
        return Ok(None);
    };
    let message = proto::Header::decode(message).map_err(HeaderError::Malformed)?;
    Ok(Some((message.try_into()?, HEAD + wanted)))
}

impl TransportHeader {
    /// The header as it is sent.
    pub fn encode(&self) -> Bytes {
        let message = proto::Header::from(self);
        let length = message.encoded_len();
        let mut bytes = BytesMut::with_capacity(HEAD + length);
        bytes.put_slice(PREFACE);
        // A name is at most a few hundred bytes; one of 4 GiB could not be sent anyway.
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        bytes.put(message.encode_to_vec().as_slice());
        bytes.freeze()
    }
}

impl TryFrom<proto::Header> for TransportHeader {
    type Error = HeaderError;

    fn try_from(header: proto::Header) -> Result<Self, Self::Error> {
        let port = u16::try_from(header.port)
            .ok()
            .and_then(NonZeroU16::new)
            .ok_or(HeaderError::Port(header.port))?;
        let session = header
            .session_protocol
            .and_then(|session| session.kind)
            .map(|kind| match kind {
                proto::Kind::Http1(_) => Session::Http1,
                proto::Kind::Http2(_) => Session::Http2,
            });
        Ok(Self {
            port,
            name: (!header.name.is_empty()).then(|| header.name.into()),
            session,
        })
    }
}

impl From<&TransportHeader> for proto::Header {
    fn from(header: &TransportHeader) -> Self {
        Self {
            port: header.port.get().into(),
            name: header.name.as_deref().unwrap_or_default().to_owned(),
            session_protocol: header.session.map(|session| proto::SessionProtocol {
                kind: Some(match session {
                    Session::Http1 => proto::Kind::Http1(proto::Nothing {}),
                    Session::Http2 => proto::Kind::Http2(proto::Nothing {}),
                }),
            }),
        }
    }
}

/// `transport.l5d.io.Header`, in so few lines that generating them would take more.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Header {
        #[prost(int32, tag = "1")]
        pub(super) port: i32,
        #[prost(string, tag = "2")]
        pub(super) name: String,
        #[prost(message, optional, tag = "3")]
        pub(super) session_protocol: Option<SessionProtocol>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct SessionProtocol {
        #[prost(oneof = "Kind", tags = "1, 2")]
        pub(super) kind: Option<Kind>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "1")]
        Http1(Nothing),
        #[prost(message, tag = "2")]
        Http2(Nothing),
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Nothing {}
}

#[cfg(test)]
mod tests;
