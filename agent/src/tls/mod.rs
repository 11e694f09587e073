//! Mesh TLS on both sides: TLS 1.3 only, identities in certificates, no host names.
//!
//! [`crypto`] is the one set of parameters, [`Credentials`] are rustls configurations made of a
//! workload's certificate and the trust bundle, [`client`] and [`server`] do handshakes, [`peer`]
//! reads identities out of certificates. Where certificates come from is `identity`'s business.
//!
//! Resumption is off on both sides: sidecars never resume, and a ticket outlives the bundle and
//! the certificate it was issued under. Tickets between Weft nodes would be turned on in
//! `credentials.rs`, where both configurations are made, together with a store that is emptied
//! when the bundle changes.

use std::{io, sync::Arc};

use weft_api::model::Identity;

mod chains;
pub mod client;
mod credentials;
pub mod crypto;
pub mod peer;
pub mod server;

pub use credentials::{Credentials, InvalidBundle, TrustBundle};

/// The only ALPN value of the mesh: a transport header follows the handshake.
pub const TRANSPORT_ALPN: &[u8] = b"transport.l5d.io/v1";

/// Whom a client expects to meet, and under which name it asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    /// What the peer's certificate has to say.
    pub identity: Identity,
    /// The SNI.
    pub server_name: Arc<str>,
}

/// Why there is no mesh TLS on a connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The SNI to send is no DNS name.
    #[error("server name {0:?} is not a DNS name")]
    ServerName(Arc<str>),
    /// The handshake failed: at the peer, at its certificate, or on the way.
    #[error("TLS handshake")]
    Handshake(#[source] io::Error),
    /// The peer's certificate is valid and is somebody else's.
    #[error("certificate does not match TLS identity: expected {expected}, found {found}")]
    WrongPeer {
        /// Who was expected.
        expected: Identity,
        /// The names in the certificate.
        found: String,
    },
}

impl TlsError {
    /// Whether the peer may do better in a moment: it did not speak TLS at all, or went away. One
    /// that has shown a certificate that is not good, or refused ours, will do so again.
    pub fn is_passing(&self) -> bool {
        let Self::Handshake(error) = self else {
            return false;
        };
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        !matches!(
            cause,
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))
        )
    }

    /// The error as metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::ServerName(_) => "tls server name",
            Self::Handshake(_) => "tls handshake",
            Self::WrongPeer { .. } => "tls wrong peer",
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
