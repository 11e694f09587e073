//! Plays a peer of the mesh on plain threads: a TLS client or server with any certificate, to be a
//! good peer, a wrong one, or half of one.
//!
//! It verifies nothing: it is the other side that is tested.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, ServerConfig,
    ServerConnection, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{ca::Leaf, eventually::eventually_within};

/// Time for each read and write.
const LIMIT: Duration = Duration::from_secs(10);

/// A client's TLS connection.
pub type ClientStream = StreamOwned<ClientConnection, TcpStream>;

/// Opens mesh TLS to an address as the owner of this certificate.
///
/// # Errors
/// When the peer refuses.
pub fn connect(address: SocketAddr, server_name: &str, leaf: Leaf) -> Result<ClientStream> {
    let config = client_config(leaf)?;
    let name = ServerName::try_from(server_name.to_owned())?;
    let mut tls = ClientConnection::new(Arc::new(config), name)?;
    let mut tcp = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("connect to {address}"))?;
    tcp.set_read_timeout(Some(LIMIT))?;
    tcp.set_write_timeout(Some(LIMIT))?;
    tls.complete_io(&mut tcp).context("TLS handshake")?;
    Ok(StreamOwned::new(tls, tcp))
}

/// Sends a request over mesh TLS and gives what came back until the end.
///
/// # Errors
/// When the connection breaks.
pub fn exchange(stream: &mut ClientStream, request: &[u8]) -> Result<String> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut answer = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            // A peer that ends the TCP connection without TLS's goodbye: what came before counts.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error).context("read answer"),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Takes one connection.
///
/// # Errors
/// When nobody connects in time.
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let (stream, _peer) = eventually_within(LIMIT, "connection", || Ok(listener.accept()?))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Takes one connection, answers its TLS hello with this certificate, and gives what the client
/// sent before it ended: nothing when it turned the certificate down.
///
/// # Errors
/// When nobody connects, or the configuration is wrong.
pub fn serve_once(listener: &TcpListener, leaf: Leaf) -> Result<Vec<u8>> {
    let config = Arc::new(server_config(leaf)?);
    let tcp = accept(listener)?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, tcp);
    let mut request = vec![0; 4096];
    let count = stream.read(&mut request).unwrap_or(0);
    request.truncate(count);
    Ok(request)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn client_config(leaf: Leaf) -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll))
        .with_client_auth_cert(leaf.chain, leaf.key)?;
    Ok(config)
}

fn server_config(leaf: Leaf) -> Result<ServerConfig> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AcceptAll))
        .with_single_cert(leaf.chain, leaf.key)?;
    Ok(config)
}

#[derive(Debug)]
struct AcceptAll;

impl AcceptAll {
    fn schemes() -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for AcceptAll {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ca::{Ca, Validity};

    const NAME: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

    /// The first flights of a handshake, as they go over the wire.
    pub(crate) fn hello_bytes() -> (Vec<u8>, Vec<u8>) {
        let ca = Ca::create().unwrap();
        let leaf = || ca.leaf(NAME, Validity::Valid).unwrap();
        let client_config = Arc::new(client_config(leaf()).unwrap());
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = ClientConnection::new(client_config, name).unwrap();
        let server_config = Arc::new(server_config(leaf()).unwrap());
        let mut server = ServerConnection::new(server_config).unwrap();
        let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
        client.write_tls(&mut from_client).unwrap();
        server.read_tls(&mut from_client.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        server.write_tls(&mut from_server).unwrap();
        (from_client, from_server)
    }

    #[test]
    fn client_and_server_understand_each_other() {
        let ca = Ca::create().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let leaf = ca.leaf(NAME, Validity::Expired).unwrap();
        let server = std::thread::spawn(move || serve_once(&listener, leaf).unwrap());
        let leaf = ca.leaf(NAME, Validity::Valid).unwrap();
        let mut stream = connect(address, NAME, leaf).unwrap();
        stream.write_all(b"hello").unwrap();
        assert_eq!(server.join().unwrap(), b"hello");
    }
}
