//! Finds out from the first bytes what a connection carries, and puts the bytes back.
//!
//! TLS: the server name in the first record decides whether the connection is for us; see
//! [`tls`]. HTTP: the preface of HTTP/2 or the beginning of an HTTP/1 request; see [`http()`].

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::io::{Io, Rewind};

mod hello;

/// Bytes read at once while looking for a hello: one fits with all its key shares.
const HELLO_ROOM: usize = 2048;
/// Bytes read at once while looking for HTTP.
const HTTP_ROOM: usize = 1024;
/// Fewer bytes than this decide nothing: the preface up to the version, as in linkerd2-proxy.
const HTTP_ENOUGH: usize = H2_PREFACE.len();
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// What the first bytes say about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsHello {
    /// No TLS, or none that we could terminate.
    NotTls,
    /// A hello that asks for a name, as it was written.
    Sni(Arc<str>),
    /// A hello without a name.
    NoSni,
}

/// What the first bytes say about HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// An HTTP/1 request begins.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// Something else.
    NotHttp,
    /// Too little came in time.
    TimedOut,
    /// The connection ended, or broke, before anything came.
    Eof,
}

/// Why it cannot be said what a connection carries.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The connection failed.
    #[error("read the first bytes")]
    Io(#[from] io::Error),
    /// Too little came in time.
    #[error("tls detection timed out after {0:?}")]
    TimedOut(Duration),
}

impl DetectError {
    /// The error as metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "i/o",
            Self::TimedOut(_) => "tls detection timeout",
        }
    }
}

/// Reads until it is clear whether a TLS hello has come, and for whom.
///
/// The end of the connection counts as "no TLS". A hello may come in any number of segments, but
/// has to be one record of at most 8,192 bytes.
///
/// # Errors
/// When the connection fails, or the hello is not complete within `limit`.
pub async fn tls(io: &mut Rewind<TcpStream>, limit: Duration) -> Result<TlsHello, DetectError> {
    let deadline = Instant::now() + limit;
    loop {
        match hello::parse(io.buffered()) {
            hello::Parsed::Incomplete => {}
            hello::Parsed::NotTls => return Ok(TlsHello::NotTls),
            hello::Parsed::Hello(None) => return Ok(TlsHello::NoSni),
            hello::Parsed::Hello(Some(name)) => return Ok(TlsHello::Sni(name.into())),
        }
        let read = timeout_at(deadline, io.fill(HELLO_ROOM))
            .await
            .map_err(|_elapsed| DetectError::TimedOut(limit))??;
        if read == 0 {
            return Ok(TlsHello::NotTls);
        }
    }
}

/// Reads until it is clear whether HTTP is spoken.
///
/// linkerd2-proxy decides by the first read alone, and takes a request whose first segment is
/// shorter than 14 bytes for something else. This reads on while what has come could be the
/// beginning of HTTP.
pub async fn http(io: &mut Io, limit: Duration) -> Http {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = classify(io.buffered()) {
            return found;
        }
        match timeout_at(deadline, io.fill(HTTP_ROOM)).await {
            Err(_elapsed) => return Http::TimedOut,
            Ok(Ok(0) | Err(_)) if io.buffered().is_empty() => return Http::Eof,
            Ok(Ok(0) | Err(_)) => return Http::NotHttp,
            Ok(Ok(_more)) => {}
        }
    }
}

/// Decides, or says that more is needed.
fn classify(bytes: &[u8]) -> Option<Http> {
    if bytes.is_empty() {
        return None;
    }
    if bytes.len() < HTTP_ENOUGH && H2_PREFACE.starts_with(bytes) {
        return None;
    }
    if bytes.starts_with(H2_PREFACE) {
        return Some(Http::Http2);
    }
    let mut headers = [httparse::EMPTY_HEADER; 0];
    let begins_request = match httparse::Request::new(&mut headers).parse(bytes) {
        // Headers are not looked at: that there are more than none says the request line is good.
        Ok(_) | Err(httparse::Error::TooManyHeaders) => true,
        Err(_) => false,
    };
    match begins_request {
        false => Some(Http::NotHttp),
        true if bytes.len() >= HTTP_ENOUGH => Some(Http::Http1),
        // A line that is over and so short is no request line.
        true if bytes.trim_ascii_start().contains(&b'\n') => Some(Http::NotHttp),
        true => None,
    }
}

#[cfg(test)]
mod tests;
