//! Issues certificates with a checked issuer.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use rand::{TryRngCore as _, rngs::OsRng};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use weft_api::model::Identity;

use super::{Csr, files::CaError, files::check_time};

/// How long leaves are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From now on.
    pub lifetime: Duration,
    /// Before now, for clocks that are behind.
    pub skew: Duration,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Certificates between it and a trust anchor.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its end.
    pub not_after: SystemTime,
    /// Its serial number in hex.
    pub serial: String,
}

/// An issuer that was checked against its trust anchors. Has no `Debug` of its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    issuer_file: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    bundle: Arc<str>,
    not_after: SystemTime,
    fingerprint: Vec<u8>,
}

/// Longest common name that X.509 allows; identities may be longer.
const MAX_COMMON_NAME: usize = 64;
const SERIAL_BYTES: usize = 16;

impl Default for Validity {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(24 * 60 * 60),
            skew: Duration::from_secs(20),
        }
    }
}

impl Authority {
    pub(super) const fn new(
        issuer: Issuer<'static, KeyPair>,
        chain: Vec<CertificateDer<'static>>,
        issuer_file: PathBuf,
        bundle: Arc<str>,
        not_after: SystemTime,
    ) -> Self {
        Self {
            issuer,
            issuer_file,
            chain,
            bundle,
            not_after,
            fingerprint: Vec::new(),
        }
    }

    /// Remembers what the files said, to see later whether they have changed.
    pub(super) fn with_fingerprint(mut self, certificate: &str, key: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for text in [&*self.bundle, certificate, key] {
            context.update(text.as_bytes());
            context.update(&[0]);
        }
        self.fingerprint = context.finish().as_ref().to_vec();
        self
    }

    /// Whether it was made of the same files.
    pub fn is_same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }

    /// Trust anchors, PEM.
    pub const fn bundle(&self) -> &Arc<str> {
        &self.bundle
    }

    /// Certificates that go with every leaf.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The earliest end in the chain.
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether certificates can be issued.
    ///
    /// # Errors
    /// When the chain has expired since it was loaded.
    pub fn check(&self, now: SystemTime) -> Result<(), CaError> {
        let always = SystemTime::UNIX_EPOCH;
        check_time(
            &self.issuer_file,
            "issuer or its chain",
            (always, self.not_after),
            now,
        )
    }

    /// Issues a workload's certificate.
    ///
    /// # Errors
    /// When the issuer has expired, or signing fails.
    pub fn issue(
        &self,
        identity: &Identity,
        csr: &Csr,
        validity: Validity,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let name = identity.to_string();
        let common_name = Some(name.as_str()).filter(|name| name.len() <= MAX_COMMON_NAME);
        self.sign(
            std::slice::from_ref(&name),
            common_name,
            csr.key(),
            validity,
            now,
        )
    }

    /// Signs a leaf for DNS names.
    pub(super) fn sign(
        &self,
        names: &[String],
        common_name: Option<&str>,
        key: &impl PublicKeyData,
        validity: Validity,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        self.check(now)?;
        let not_after = (now + validity.lifetime).min(self.not_after);
        let mut params = CertificateParams::default();
        for name in names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.not_before = OffsetDateTime::from(now - validity.skew);
        params.not_after = OffsetDateTime::from(not_after);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let serial = serial()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            chain: self.chain.clone(),
            not_after,
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("issuer_file", &self.issuer_file)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A positive number, never zero, that nobody can guess.
pub(super) fn serial() -> Result<[u8; SERIAL_BYTES], CaError> {
    let mut bytes = [0; SERIAL_BYTES];
    OsRng.try_fill_bytes(&mut bytes).map_err(CaError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes)
}
