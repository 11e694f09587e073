//! A fresh key and the request to have it certified.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{crypto::aws_lc_rs::sign::any_ecdsa_type, sign::SigningKey};
use rustls_pki_types::{CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use weft_api::model::Identity;

/// A key that nobody else has, and what to send to the certificate authority. Has no `Debug`.
pub(super) struct Request {
    pub(super) key: Arc<dyn SigningKey>,
    pub(super) csr: CertificateSigningRequestDer<'static>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The key or the request could not be made.
    #[error("make a key and a signing request")]
    Make(#[from] rcgen::Error),
    /// rustls does not take the key.
    #[error("load the key")]
    Key(#[from] rustls::Error),
}

/// Makes a P-256 key and a request with one name, the identity, and an empty subject: what
/// Linkerd's identity service asks for.
pub(super) fn make(identity: &Identity) -> Result<Request, RequestError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![match identity {
        Identity::Dns(name) => SanType::DnsName(name.as_ref().try_into()?),
        Identity::Spiffe(uri) => SanType::URI(uri.as_ref().try_into()?),
    }];
    let csr = params.serialize_request(&pair)?.der().clone();
    let key = any_ecdsa_type(&PrivatePkcs8KeyDer::from(pair.serialize_der()).into())?;
    Ok(Request { key, csr })
}
