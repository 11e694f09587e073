//! Trust anchors, issuer certificate and issuer key as files, and what can be wrong with them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;

use super::{Authority, Validity};

/// Where an authority's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// One or more trust anchors, PEM.
    pub anchors: PathBuf,
    /// Issuer certificate, then those between it and an anchor, PEM.
    pub issuer: PathBuf,
    /// Key of the issuer certificate, PEM.
    pub key: PathBuf,
}

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read.
    #[error("read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {file}")]
    Write {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{file}: {what}")]
    Contents {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file that the others need is not there.
    #[error("{file} is missing: {remedy}")]
    Missing {
        /// The file.
        file: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The key is another certificate's.
    #[error("the key in {key} is not that of the certificate in {certificate}")]
    KeyMismatch {
        /// Key file.
        key: PathBuf,
        /// Certificate file.
        certificate: PathBuf,
    },
    /// A certificate is valid at another time.
    #[error(
        "{file}: certificate {subject:?} {when}; replace it by a valid one, \
         or set this machine's clock right"
    )]
    Validity {
        /// The file.
        file: PathBuf,
        /// The certificate.
        subject: String,
        /// For example `expired at ...`.
        when: String,
    },
    /// No chain leads from the issuer to an anchor.
    #[error("the issuer in {issuer} is not vouched for by any trust anchor in {anchors}")]
    Untrusted {
        /// Issuer file.
        issuer: PathBuf,
        /// Anchors file.
        anchors: PathBuf,
        /// What verification says.
        source: rustls::Error,
    },
    /// A certificate cannot be made.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    /// The system's random source fails.
    #[error("read random bytes")]
    Random(#[source] rand::rand_core::OsError),
}

impl CaFiles {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// Names the file that is wrong.
    pub fn load(&self, now: SystemTime) -> Result<Authority, CaError> {
        let (bundle, anchors) = certificates(&self.anchors)?;
        let (issuer_pem, chain) = certificates(&self.issuer)?;
        let key_pem = read(&self.key)?;
        let mut not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(u32::MAX.into());
        for certificate in &chain {
            let end = self.check_ca(&self.issuer, certificate, Some(now))?;
            not_after = not_after.min(end);
        }
        let mut last_anchor = None;
        let top = chain.last().and_then(issuer_name);
        for anchor in &anchors {
            let end = self.check_ca(&self.anchors, anchor, None)?;
            if subject_name(anchor) == top {
                last_anchor = last_anchor.max(Some(end));
            }
        }
        if let Some(end) = last_anchor {
            not_after = not_after.min(end);
        }
        let Some(issuer_der) = chain.first() else {
            return Err(contents(&self.issuer, "holds no certificate"));
        };
        let key = self.key(&key_pem, issuer_der)?;
        let issuer = Issuer::from_ca_cert_der(issuer_der, key)
            .map_err(|error| contents(&self.issuer, error.to_string()))?;
        // Peers have the anchors; sending a self-signed one along is of no use.
        let sent = chain
            .iter()
            .filter(|certificate| subject_name(certificate) != issuer_name(certificate));
        let sent: Vec<_> = sent.cloned().collect();
        let authority = Authority::new(issuer, sent, self.issuer.clone(), bundle.into(), not_after)
            .with_fingerprint(&issuer_pem, &key_pem);
        self.prove(&authority, &anchors, now)?;
        Ok(authority)
    }

    /// Checks that a certificate is a CA's and valid; returns when it ends.
    fn check_ca(
        &self,
        file: &Path,
        der: &CertificateDer<'_>,
        now: Option<SystemTime>,
    ) -> Result<SystemTime, CaError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| contents(file, format!("not an X.509 certificate: {error}")))?;
        let subject = certificate.subject().to_string();
        if !certificate.is_ca() {
            let what = format!("certificate {subject:?} is not that of a certificate authority");
            return Err(contents(file, what));
        }
        let (start, end) = lifetime(&certificate);
        if let Some(now) = now {
            check_time(file, &subject, (start, end), now)?;
        }
        Ok(end)
    }

    fn key(&self, pem: &str, issuer: &CertificateDer<'_>) -> Result<KeyPair, CaError> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_error| contents(&self.key, "holds no PEM private key"))?;
        let key = KeyPair::from_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_error| contents(&self.key, "is not an ECDSA P-256 private key"))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(issuer)
            .map_err(|error| contents(&self.issuer, error.to_string()))?;
        let public = &certificate.public_key().subject_public_key.data;
        match **public == *key.public_key_raw() {
            true => Ok(key),
            false => Err(CaError::KeyMismatch {
                key: self.key.clone(),
                certificate: self.issuer.clone(),
            }),
        }
    }

    /// Issues a certificate and verifies it as a peer would.
    fn prove(
        &self,
        authority: &Authority,
        anchors: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<(), CaError> {
        const NAME: &str = "probe.invalid";
        let untrusted = |source| CaError::Untrusted {
            issuer: self.issuer.clone(),
            anchors: self.anchors.clone(),
            source,
        };
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots
                .add(anchor.clone())
                .map_err(|error| contents(&self.anchors, error.to_string()))?;
        }
        let key = KeyPair::generate()?;
        let names = [NAME.to_owned()];
        let leaf = authority.sign(&names, None, &key, Validity::default(), now)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| contents(&self.anchors, error.to_string()))?;
        let name = ServerName::try_from(NAME)
            .map_err(|error| contents(&self.issuer, error.to_string()))?;
        let time = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        verifier
            .verify_server_cert(
                &leaf.certificate,
                authority.chain(),
                &name,
                &[],
                UnixTime::since_unix_epoch(time),
            )
            .map(|_verified| ())
            .map_err(untrusted)
    }
}

/// Fails unless a certificate is valid now.
pub(super) fn check_time(
    file: &Path,
    subject: &str,
    (start, end): (SystemTime, SystemTime),
    now: SystemTime,
) -> Result<(), CaError> {
    let when = if now < start {
        format!("is not valid before {}", OffsetDateTime::from(start))
    } else if now >= end {
        format!("expired at {}", OffsetDateTime::from(end))
    } else {
        return Ok(());
    };
    Err(CaError::Validity {
        file: file.to_owned(),
        subject: subject.to_owned(),
        when,
    })
}

pub(super) fn contents(file: &Path, what: impl Into<String>) -> CaError {
    CaError::Contents {
        file: file.to_owned(),
        what: what.into(),
    }
}

pub(super) fn read(file: &Path) -> Result<String, CaError> {
    fs::read_to_string(file).map_err(|source| CaError::Read {
        file: file.to_owned(),
        source,
    })
}

/// When a certificate begins and ends.
pub(super) fn lifetime(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    let start = validity.not_before.to_datetime();
    let end = validity.not_after.to_datetime();
    (start.into(), end.into())
}

fn certificates(file: &Path) -> Result<(String, Vec<CertificateDer<'static>>), CaError> {
    let pem = read(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| contents(file, format!("not PEM: {error}")))?;
    match all.is_empty() {
        true => Err(contents(file, "holds no PEM certificate")),
        false => Ok((pem, all)),
    }
}

fn subject_name(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.subject().as_raw().to_vec())
}

fn issuer_name(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.issuer().as_raw().to_vec())
}
