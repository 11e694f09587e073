//! rustls configurations made of a workload's certificate and the trust bundle.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::verify_tls13_signature,
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use weft_api::model::Identity;

use super::{TRANSPORT_ALPN, chains::Chains, crypto};

/// The anchors that vouch for identities, and the chains they are known to vouch for.
#[derive(Clone)]
pub struct TrustBundle(Arc<Bundle>);

struct Bundle {
    anchors: Arc<RootCertStore>,
    servers: Chains,
    clients: Chains,
}

/// Why a text is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBundle {
    /// There is no certificate in it.
    #[error("trust bundle holds no certificate")]
    Empty,
    /// It is not PEM.
    #[error("trust bundle, certificate {index}: not PEM")]
    Pem {
        /// Which one, from 1.
        index: usize,
        /// What is wrong.
        source: rustls_pki_types::pem::Error,
    },
    /// It is PEM, and not a certificate that can be an anchor.
    #[error("trust bundle, certificate {index}")]
    Certificate {
        /// Which one, from 1.
        index: usize,
        /// What is wrong.
        source: Error,
    },
}

/// A workload's identity, ready for handshakes.
///
/// Has no `Debug`: the configurations hold the private key.
pub struct Credentials {
    /// Whose they are.
    pub identity: Identity,
    /// For clients that offer no ALPN.
    pub client: Arc<ClientConfig>,
    /// For clients that offer the transport header.
    pub client_transport: Arc<ClientConfig>,
    /// For servers; takes the transport header and requires none.
    pub server: Arc<ServerConfig>,
    /// When the certificate ends.
    pub expires: SystemTime,
}

impl TrustBundle {
    /// Reads PEM certificates. Each must parse, and there must be one at least.
    ///
    /// # Errors
    /// When that is not so; names the certificate.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidBundle> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
            let index = index + 1;
            let certificate = certificate.map_err(|source| InvalidBundle::Pem { index, source })?;
            roots
                .add(certificate)
                .map_err(|source| InvalidBundle::Certificate { index, source })?;
        }
        match roots.is_empty() {
            true => Err(InvalidBundle::Empty),
            false => Ok(Self(Arc::new(Bundle {
                anchors: Arc::new(roots),
                servers: Chains::default(),
                clients: Chains::default(),
            }))),
        }
    }

    /// How many anchors there are.
    pub fn len(&self) -> usize {
        self.0.anchors.len()
    }

    /// Whether there is no anchor, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.0.anchors.is_empty()
    }

    /// Checks that the chain leads to an anchor and is valid at `now`. Does not look at names.
    ///
    /// # Errors
    /// When it does not.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.0.servers.knows(leaf, intermediates, now) {
            return Ok(());
        }
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.0.anchors,
            intermediates,
            now,
            crypto::SIGNATURES.all,
        )?;
        self.0.servers.learn(leaf, intermediates);
        Ok(())
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.0.anchors.roots == other.0.anchors.roots
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} anchors)", self.len())
    }
}

impl Credentials {
    /// Makes the configurations.
    ///
    /// # Errors
    /// When rustls refuses the parts.
    pub fn new(
        identity: Identity,
        certified: Arc<CertifiedKey>,
        expires: SystemTime,
        bundle: &TrustBundle,
    ) -> Result<Self, Error> {
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let mut client = ClientConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(crypto::VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ChainVerifier(bundle.clone())))
            .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(&resolver));
        client.resumption = Resumption::disabled();
        let mut client_transport = client.clone();
        client_transport.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];

        let anchors = Arc::clone(&bundle.0.anchors);
        let clients = WebPkiClientVerifier::builder_with_provider(anchors, crypto::provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let clients = Arc::new(ClientVerifier {
            full: clients,
            bundle: bundle.clone(),
        });
        let mut server = ServerConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(crypto::VERSIONS)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];
        // Sidecars never resume; a ticket would cost a write, a lock and memory for nothing.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            identity,
            client: Arc::new(client),
            client_transport: Arc::new(client_transport),
            server: Arc::new(server),
            expires,
        })
    }

    /// Whether the certificate has ended.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires <= now
    }
}

/// Believes a server whose chain leads to an anchor. Whom the certificate names is checked after
/// the handshake, because one configuration serves connections to many peers.
#[derive(Debug)]
struct ChainVerifier(TrustBundle);

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &crypto::SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::SIGNATURES.supported_schemes()
    }
}

/// Believes a client whose chain leads to an anchor; one that sends no certificate is let in too.
#[derive(Debug)]
struct ClientVerifier {
    full: Arc<dyn ClientCertVerifier>,
    bundle: TrustBundle,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.full.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.full.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.full.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let known = &self.bundle.0.clients;
        if known.knows(end_entity, intermediates, now) {
            return Ok(ClientCertVerified::assertion());
        }
        let verified = self
            .full
            .verify_client_cert(end_entity, intermediates, now)?;
        known.learn(end_entity, intermediates);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.full.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.full.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.full.supported_verify_schemes()
    }
}
