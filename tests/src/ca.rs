//! A certificate authority of the tests: given to the controller as its own, so that a test can make
//! any certificate it wants to be attacked with.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// An anchor and its issuer.
#[derive(Debug)]
pub struct Ca {
    anchor_pem: String,
    issuer_pem: String,
    issuer_key: KeyPair,
}

/// A workload certificate with its chain and key.
#[derive(Debug)]
pub struct Leaf {
    /// Leaf first, then the issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key.
    pub key: PrivateKeyDer<'static>,
}

/// Whether a certificate is in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It is.
    Valid,
    /// Its time ended years ago.
    Expired,
    /// Its time begins years ahead.
    Future,
}

impl Ca {
    /// Makes an anchor and an issuer below it.
    ///
    /// # Errors
    /// When keys cannot be made.
    pub fn create() -> Result<Self> {
        let anchor_key = KeyPair::generate()?;
        let anchor = authority("root.linkerd.cluster.local")?;
        let anchor_pem = anchor.self_signed(&anchor_key)?.pem();
        let issuer_key = KeyPair::generate()?;
        let issuer = authority("identity.linkerd.cluster.local")?;
        let signer = Issuer::from_params(&anchor, &anchor_key);
        let issuer_pem = issuer.signed_by(&issuer_key, &signer)?.pem();
        Ok(Self {
            anchor_pem,
            issuer_pem,
            issuer_key,
        })
    }

    /// The anchor, PEM.
    pub fn anchor_pem(&self) -> &str {
        &self.anchor_pem
    }

    /// Writes the files and gives the controller's arguments that name them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn controller_args(&self, folder: &Path) -> Result<Vec<String>> {
        fs::create_dir_all(folder)?;
        let mut args = Vec::new();
        for (flag, name, text) in [
            ("--trust-anchors", "anchors.pem", self.anchor_pem.clone()),
            ("--issuer-cert", "issuer.pem", self.issuer_pem.clone()),
            (
                "--issuer-key",
                "issuer-key.pem",
                self.issuer_key.serialize_pem(),
            ),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            args.extend([flag.to_owned(), path.display().to_string()]);
        }
        Ok(args)
    }

    /// Makes a workload certificate with this name.
    ///
    /// # Errors
    /// When the name is none.
    pub fn leaf(&self, identity: &str, validity: Validity) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![identity.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, identity);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let (from, to) = match validity {
            Validity::Valid => (2020, 2040),
            Validity::Expired => (2019, 2020),
            Validity::Future => (2039, 2040),
        };
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let issuer = Issuer::from_ca_cert_pem(&self.issuer_pem, &self.issuer_key)?;
        let leaf = params.signed_by(&key, &issuer)?;
        let issuer_der = pem_to_der(&self.issuer_pem)?;
        Ok(Leaf {
            chain: vec![leaf.der().clone(), issuer_der],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }
}

fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    Ok(params)
}

fn pem_to_der(pem: &str) -> Result<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pem.as_bytes()).context("certificate PEM")
}
