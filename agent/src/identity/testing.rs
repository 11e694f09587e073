//! Certified identities for tests of other modules.

use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Handle, entry::Entry, verify::Certified};
use crate::tls::testing::{Ca, HOUR};

/// A handle that has a certificate of `ca` and asks nobody for another.
pub(crate) fn certified(ca: &Ca, identity: &str) -> Handle {
    let entry = uncertified(identity);
    let expires = SystemTime::now() + HOUR;
    let certified = Certified {
        key: ca.certified(&[identity], expires),
        expires,
    };
    let bundle = watch::Sender::new(Some(ca.bundle().into()));
    entry.0.install(certified, &bundle).unwrap();
    entry
}

/// A handle without a certificate.
pub(crate) fn uncertified(identity: &str) -> Handle {
    let stop = CancellationToken::new().drop_guard();
    Handle(Entry::new(identity.parse().unwrap(), stop).into())
}
