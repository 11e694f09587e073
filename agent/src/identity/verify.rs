//! Checks what a certificate authority sent before anything is installed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, Error,
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use weft_api::model::Identity;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::tls::{TrustBundle, peer};

/// Why a certificate is not installed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The leaf does not parse.
    #[error("certificate does not parse")]
    Malformed,
    /// It does not name the identity it was asked for.
    #[error("certificate does not name {0}")]
    Name(Identity),
    /// It is for another key.
    #[error("certificate is not for the key that was sent")]
    Key(#[source] Error),
    /// It begins in the future.
    #[error(
        "certificate is valid only {ahead:?} from now: is the clock of this node behind the controller's?"
    )]
    NotYetValid {
        /// How far in the future.
        ahead: Duration,
    },
    /// It has ended already.
    #[error(
        "certificate ended {since:?} ago: is the clock of this node ahead of the controller's?"
    )]
    Expired {
        /// How long ago.
        since: Duration,
    },
    /// It does not lead to an anchor.
    #[error("certificate does not chain to the trust bundle")]
    Chain(#[source] Error),
    /// rustls does not take it.
    #[error("certificate cannot be used")]
    Unusable(#[source] Error),
}

/// A certificate with its key that has passed every check. Has no `Debug`.
#[derive(Clone)]
pub(super) struct Certified {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) expires: SystemTime,
}

/// Checks name, key, times and chain.
///
/// `valid_until` is what the authority says; the earlier of that and the leaf's own end counts.
pub(super) fn certify(
    identity: &Identity,
    key: Arc<dyn SigningKey>,
    chain: Vec<CertificateDer<'static>>,
    valid_until: Option<SystemTime>,
    bundle: &TrustBundle,
) -> Result<Certified, Refused> {
    let leaf = chain.first().ok_or(Refused::Malformed)?;
    if !peer::names(leaf, identity) {
        return Err(Refused::Name(identity.clone()));
    }
    let now = SystemTime::now();
    let ends = check_times(leaf, now)?;
    check_chain(&chain, bundle, now).map_err(Refused::Chain)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(Refused::Key)?;
    Ok(Certified {
        key: Arc::new(certified),
        expires: valid_until.map_or(ends, |until| until.min(ends)),
    })
}

/// Whether the chain leads to an anchor of the bundle now.
pub(super) fn check_chain(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), Error> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(CertificateError::BadEncoding.into());
    };
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    bundle.verify(leaf, intermediates, now)
}

/// Looks at the times apart from the chain, because a wrong clock is the likeliest cause and the
/// chain's error would not say by how much.
fn check_times(leaf: &CertificateDer<'_>, now: SystemTime) -> Result<SystemTime, Refused> {
    let (_rest, parsed) = X509Certificate::from_der(leaf).map_err(|_error| Refused::Malformed)?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let begins = time(parsed.validity().not_before.timestamp());
    let ends = time(parsed.validity().not_after.timestamp());
    if let Ok(ahead) = begins.duration_since(now)
        && !ahead.is_zero()
    {
        return Err(Refused::NotYetValid { ahead });
    }
    match now.duration_since(ends) {
        Ok(since) => Err(Refused::Expired { since }),
        Err(_not_yet) => Ok(ends),
    }
}
