//! A state folder's trust anchor and issuer: made on first start, issuer renewed in time.
//!
//! The files are made in an order in which a kill at any moment leaves a folder that the next
//! start completes: a key is there before its certificate, and a certificate that is missing is
//! made from the key that exists. Every file appears whole, by rename.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use tracing::{info, warn};

use super::{
    RENEW_ISSUER_BEFORE,
    authority::serial,
    files::{CaError, CaFiles, contents, lifetime, read},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ANCHOR_LIFETIME: Duration = DAY.saturating_mul(3650);
const ISSUER_LIFETIME: Duration = DAY.saturating_mul(365);
/// Clocks of nodes may be behind that of the machine which made the anchor.
const BACKDATE: Duration = Duration::from_secs(60 * 60);
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Makes what is missing, and says where the files are.
pub(super) fn prepare(folder: &Path, trust_domain: &str) -> Result<CaFiles, CaError> {
    let write_failed = |source| CaError::Write {
        file: folder.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(write_failed)?;
    warn_if_open(folder, 0o077);
    let lock = fs::File::create(folder.join(".lock")).map_err(write_failed)?;
    lock.lock().map_err(write_failed)?;
    remove_temporary(folder);
    let files = CaFiles {
        anchors: folder.join("trust-anchors.pem"),
        issuer: folder.join("issuer.pem"),
        key: folder.join("issuer-key.pem"),
    };
    let anchor_key = folder.join("anchor-key.pem");
    if !files.anchors.exists() {
        if files.issuer.exists() && !anchor_key.exists() {
            return Err(CaError::Missing {
                file: files.anchors,
                remedy: "restore it from a copy, or delete issuer.pem and issuer-key.pem too \
                         to begin with a new trust anchor",
            });
        }
        make_anchor(&files.anchors, &anchor_key, trust_domain)?;
    }
    if !files.issuer.exists() {
        make_issuer(&files, &anchor_key, SystemTime::now(), trust_domain)?;
    }
    renew_issuer(&files, SystemTime::now())?;
    warn_if_open(&files.key, 0o077);
    Ok(files)
}

/// Makes a new certificate for the issuer's key when the present one ends soon.
pub(super) fn renew_issuer(files: &CaFiles, now: SystemTime) -> Result<(), CaError> {
    let folder = files.anchors.parent().unwrap_or_else(|| Path::new("."));
    let anchor_key = folder.join("anchor-key.pem");
    let old = read(&files.issuer)?;
    let Some((name, end)) = CertificateDer::from_pem_slice(old.as_bytes())
        .ok()
        .and_then(|der| name_and_end(&der))
    else {
        return Err(contents(
            &files.issuer,
            "holds no certificate with a common name",
        ));
    };
    let left = end.duration_since(now).unwrap_or_default();
    if left > RENEW_ISSUER_BEFORE || !anchor_key.exists() {
        return Ok(());
    }
    let anchor = anchor(&files.anchors, &anchor_key)?;
    if anchor.end <= end {
        // The anchor itself ends; a new issuer would end with it.
        return Ok(());
    }
    let key = key(&files.key)?;
    write_issuer(&files.issuer, &name, &key, &anchor, now)?;
    info!(file = %files.issuer.display(), "issuer renewed");
    Ok(())
}

fn make_anchor(anchors: &Path, key_file: &Path, trust_domain: &str) -> Result<(), CaError> {
    let key = match key_file.exists() {
        true => key(key_file)?,
        false => make_key(key_file)?,
    };
    let now = SystemTime::now();
    let mut params = ca_params(&format!("root.linkerd.{trust_domain}"), None)?;
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + ANCHOR_LIFETIME);
    let certificate = params.self_signed(&key)?;
    write_atomic(anchors, certificate.pem().as_bytes(), PUBLIC)?;
    info!(file = %anchors.display(), "trust anchor made");
    Ok(())
}

fn make_issuer(
    files: &CaFiles,
    anchor_key: &Path,
    now: SystemTime,
    trust_domain: &str,
) -> Result<(), CaError> {
    if !anchor_key.exists() {
        return Err(CaError::Missing {
            file: files.issuer.clone(),
            remedy: "put an issuer certificate and its key there that the trust anchor has \
                     signed; this folder has no anchor-key.pem to make one with",
        });
    }
    let anchor = anchor(&files.anchors, anchor_key)?;
    let key = match files.key.exists() {
        true => key(&files.key)?,
        false => make_key(&files.key)?,
    };
    let name = format!("identity.linkerd.{trust_domain}");
    write_issuer(&files.issuer, &name, &key, &anchor, now)?;
    info!(file = %files.issuer.display(), "issuer made");
    Ok(())
}

struct Anchor {
    issuer: Issuer<'static, KeyPair>,
    end: SystemTime,
}

/// The anchor that the key is of; the bundle may hold others.
fn anchor(anchors: &Path, key_file: &Path) -> Result<Anchor, CaError> {
    let key = key(key_file)?;
    let pem = read(anchors)?;
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|error| contents(anchors, format!("not PEM: {error}")))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| contents(anchors, error.to_string()))?;
        if *parsed.public_key().subject_public_key.data == *key.public_key_raw() {
            let (_, end) = lifetime(&parsed);
            let issuer = Issuer::from_ca_cert_der(&der, key)?;
            return Ok(Anchor { issuer, end });
        }
    }
    Err(CaError::KeyMismatch {
        key: key_file.to_owned(),
        certificate: anchors.to_owned(),
    })
}

fn write_issuer(
    file: &Path,
    name: &str,
    key: &KeyPair,
    anchor: &Anchor,
    now: SystemTime,
) -> Result<(), CaError> {
    let mut params = ca_params(name, Some(0))?;
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from((now + ISSUER_LIFETIME).min(anchor.end));
    let certificate = params.signed_by(key, &anchor.issuer)?;
    write_atomic(file, certificate.pem().as_bytes(), PUBLIC)
}

fn ca_params(name: &str, path_length: Option<u8>) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(match path_length {
        Some(length) => BasicConstraints::Constrained(length),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    Ok(params)
}

fn make_key(file: &Path) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write_atomic(file, key.serialize_pem().as_bytes(), SECRET)?;
    Ok(key)
}

fn key(file: &Path) -> Result<KeyPair, CaError> {
    let pem = read(file)?;
    KeyPair::from_pem_and_sign_algo(&pem, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_error| contents(file, "is not an ECDSA P-256 private key"))
}

fn name_and_end(der: &CertificateDer<'_>) -> Option<(String, SystemTime)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    let (_, end) = lifetime(&certificate);
    Some((name.as_str().ok()?.to_owned(), end))
}

fn write_atomic(file: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    let write = || -> io::Result<()> {
        let mut temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(file)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| CaError::Write {
        file: file.to_owned(),
        source,
    })
}

const TEMPORARY: &str = ".tmp-";

/// A process that was killed may have left some.
fn remove_temporary(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let left: Vec<PathBuf> = entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMPORARY.as_bytes())
        })
        .map(|entry| entry.path())
        .collect();
    for file in left {
        if let Err(error) = fs::remove_file(&file) {
            warn!(file = %file.display(), %error, "temporary file not removed");
        }
    }
}

fn warn_if_open(path: &Path, mask: u32) {
    let Ok(metadata) = fs::metadata(path) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & mask != 0 {
        warn!(
            path = %path.display(),
            mode = format!("{mode:o}"),
            "others than the owner have access; take it away with chmod go="
        );
    }
}
