//! Mesh TLS that we ask for.

use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Credentials, ServerId, TRANSPORT_ALPN, TlsError, peer};

/// A connection with mesh TLS on the client side.
pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Does a handshake and checks that the peer is who it should be.
///
/// `alpn` offers the transport header; the answer says whether the peer takes one. There is no
/// time limit here: the caller's limit covers connecting and the handshake.
///
/// # Errors
/// When the handshake fails, or the peer's certificate names somebody else.
pub async fn connect(
    io: TcpStream,
    credentials: &Credentials,
    server: &ServerId,
    alpn: bool,
) -> Result<(TlsStream, bool), TlsError> {
    let name = ServerName::try_from(server.server_name.to_string())
        .map_err(|_invalid| TlsError::ServerName(Arc::clone(&server.server_name)))?;
    let config = match alpn {
        true => &credentials.client_transport,
        false => &credentials.client,
    };
    let stream = TlsConnector::from(Arc::clone(config))
        .connect(name, io)
        .await
        .map_err(TlsError::Handshake)?;
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    if !leaf.is_some_and(|leaf| peer::names(leaf, &server.identity)) {
        return Err(TlsError::WrongPeer {
            expected: server.identity.clone(),
            found: leaf.map_or_else(|| "no certificate".to_owned(), peer::describe),
        });
    }
    let takes_header = session.alpn_protocol() == Some(TRANSPORT_ALPN);
    Ok((stream, takes_header))
}
