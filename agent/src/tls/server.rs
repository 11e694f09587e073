//! Mesh TLS that we terminate.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use weft_api::model::Identity;

use super::{Credentials, TRANSPORT_ALPN, TlsError, peer};

/// What a handshake told about the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Who the client has proved to be; `None` if it sent no certificate, or one without a name.
    pub client: Option<Identity>,
    /// Whether a transport header follows.
    pub transport_alpn: bool,
}

/// Does a handshake as the server.
///
/// A client certificate is asked for and not required; one that is sent has to be valid.
///
/// # Errors
/// When the handshake fails.
pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    credentials: &Credentials,
) -> Result<(TlsStream<T>, Accepted), TlsError> {
    let stream = TlsAcceptor::from(Arc::clone(&credentials.server))
        .accept(io)
        .await
        .map_err(TlsError::Handshake)?;
    let session = stream.get_ref().1;
    let accepted = Accepted {
        client: session
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(peer::identity),
        transport_alpn: session.alpn_protocol() == Some(TRANSPORT_ALPN),
    };
    Ok((stream, accepted))
}
