//! A certificate authority for tests.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::{crypto::aws_lc_rs::sign::any_ecdsa_type, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};

use super::{Credentials, TrustBundle};

pub(crate) const HOUR: Duration = Duration::from_hours(1);

/// A root that signs leaves itself.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, key_pair()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(&self.pem()).unwrap()
    }

    /// Credentials that are valid now and trust this root.
    pub(crate) fn credentials(&self, identity: &str) -> Credentials {
        self.credentials_until(identity, SystemTime::now() + HOUR)
    }

    /// Credentials that end, or have ended, at a time.
    pub(crate) fn credentials_until(&self, identity: &str, end: SystemTime) -> Credentials {
        let key = self.certified(&[identity], end);
        Credentials::new(identity.parse().unwrap(), key, end, &self.bundle()).unwrap()
    }

    /// A leaf with any names, URIs among them, and its key.
    pub(crate) fn certified(&self, names: &[&str], end: SystemTime) -> Arc<CertifiedKey> {
        let pair = key_pair();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains("://") {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        as_leaf(&mut params, SystemTime::now() - HOUR * 2, end);
        let leaf = params.signed_by(&pair, &self.0).unwrap();
        let key = any_ecdsa_type(&PrivatePkcs8KeyDer::from(pair.serialize_der()).into()).unwrap();
        Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key))
    }

    /// What an identity service does with a request.
    pub(crate) fn sign(
        &self,
        csr: &[u8],
        begin: SystemTime,
        end: SystemTime,
    ) -> CertificateDer<'static> {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&csr).unwrap();
        as_leaf(&mut request.params, begin, end);
        request.signed_by(&self.0).unwrap().der().clone()
    }
}

fn as_leaf(params: &mut CertificateParams, begin: SystemTime, end: SystemTime) {
    params.not_before = begin.into();
    params.not_after = end.into();
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
}

fn key_pair() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// Two ends of a TCP connection.
pub(crate) async fn tcp_pair() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(
        tokio::net::TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), server.unwrap().0)
}

/// Bounds a wait in a test.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("took longer than 10 s")
}
