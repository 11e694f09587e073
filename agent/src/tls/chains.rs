//! Certificate chains that have been verified once, so that a peer's next connection costs two
//! signature checks less on each side.
//!
//! Whether a chain leads to an anchor depends on its bytes, on the anchors and on the time alone.
//! A chain is remembered under its exact bytes, together with the span in which every certificate
//! of it is valid; the memory belongs to one trust bundle and one role, and goes with the bundle.
//! That the peer holds the leaf's key is proven by every handshake anew, and not looked at here.

use std::{collections::HashMap, fmt};

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// Chains remembered at most: a node's peers change slowly, and starting over is cheap.
const MOST: usize = 4096;

/// Chains that were verified, by their leaf.
#[derive(Default)]
pub(super) struct Chains(Mutex<HashMap<Box<[u8]>, Known>>);

struct Known {
    intermediates: Vec<Box<[u8]>>,
    /// First and last second at which every certificate is valid.
    valid: (u64, u64),
}

impl Chains {
    /// Whether this very chain was verified before and is valid at `now`.
    pub(super) fn knows(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> bool {
        let chains = self.0.lock();
        let Some(known) = chains.get(leaf.as_ref()) else {
            return false;
        };
        let same = known.intermediates.iter().map(|known| &**known);
        same.eq(intermediates.iter().map(AsRef::as_ref))
            && (known.valid.0..=known.valid.1).contains(&now.as_secs())
    }

    /// Remembers a chain that has been verified.
    pub(super) fn learn(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
        let certificates = std::iter::once(leaf).chain(intermediates);
        let Some(valid) = certificates.map(validity).try_fold((0, u64::MAX), common) else {
            return;
        };
        let known = Known {
            intermediates: intermediates
                .iter()
                .map(|der| der.as_ref().into())
                .collect(),
            valid,
        };
        let mut chains = self.0.lock();
        if chains.len() >= MOST {
            chains.clear();
        }
        chains.insert(leaf.as_ref().into(), known);
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chains({})", self.0.lock().len())
    }
}

/// First and last second of a certificate's validity; `None` if it cannot be told.
fn validity(der: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let seconds = |time: i64| u64::try_from(time).ok();
    Some((
        seconds(validity.not_before.timestamp())?,
        seconds(validity.not_after.timestamp())?,
    ))
}

fn common(so_far: (u64, u64), next: Option<(u64, u64)>) -> Option<(u64, u64)> {
    let (first, last) = next?;
    Some((so_far.0.max(first), so_far.1.min(last)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::tls::testing::{Ca, HOUR};

    fn at(time: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    }

    #[test]
    fn a_chain_is_known_to_the_byte_and_only_while_it_is_valid() {
        let ca = Ca::new("ca");
        let end = SystemTime::now() + HOUR;
        let [chain, other] = ["a.example", "b.example"].map(|name| ca.certified(&[name], end));
        let (leaf, rest) = chain.cert.split_first().unwrap();
        let (other_leaf, _) = other.cert.split_first().unwrap();
        let now = at(SystemTime::now());
        let chains = Chains::default();
        assert!(!chains.knows(leaf, rest, now));
        chains.learn(leaf, rest);
        assert!(chains.knows(leaf, rest, now));
        assert!(!chains.knows(other_leaf, rest, now), "another leaf");
        assert!(
            !chains.knows(leaf, std::slice::from_ref(other_leaf), now),
            "another chain"
        );
        assert!(
            !chains.knows(leaf, rest, at(end + Duration::from_secs(60))),
            "expired"
        );
        assert!(
            !chains.knows(
                leaf,
                rest,
                UnixTime::since_unix_epoch(Duration::from_secs(1))
            ),
            "not yet valid"
        );
    }
}
