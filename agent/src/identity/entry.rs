//! One identity of the node: its certificate now, and those who use it.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::DropGuard;
use weft_api::model::Identity;

use super::{
    IdentityStats,
    stats::{count, unix_seconds},
    verify::{Certified, check_chain},
};
use crate::tls::{Credentials, TrustBundle};

/// Keeps an identity's certificate alive and renewed. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Entry>);

/// There is no certificate yet.
#[derive(Debug, thiserror::Error)]
#[error("no certificate for {0} yet")]
pub struct NotCertified(pub Identity);

pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) stats: IdentityStats,
    /// Wakes the renewal before its time.
    pub(super) hurry: Arc<Notify>,
    current: ArcSwapOption<Credentials>,
    certified: Mutex<Option<Certified>>,
    ready: watch::Sender<bool>,
    /// Ends the renewal when the last handle goes.
    _renewal: DropGuard,
}

impl Handle {
    /// The identity.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The certificate in use; `None` before the first. It may have expired: peers say so.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.0.current.load_full()
    }

    /// The certificate in use, or an error that says for whom there is none.
    ///
    /// # Errors
    /// Before the first certificate.
    pub fn credentials(&self) -> Result<Arc<Credentials>, NotCertified> {
        self.current()
            .ok_or_else(|| NotCertified(self.0.identity.clone()))
    }

    /// Waits for the first certificate.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut ready = self.0.ready.subscribe();
        loop {
            if let Some(current) = self.current() {
                return current;
            }
            if ready.changed().await.is_err() {
                // The sender lives in the entry, which this handle keeps.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> &IdentityStats {
        &self.0.stats
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.0.identity)
    }
}

impl Entry {
    pub(super) fn new(identity: Identity, renewal: DropGuard) -> Self {
        Self {
            identity,
            stats: IdentityStats::default(),
            hurry: Arc::new(Notify::new()),
            current: ArcSwapOption::empty(),
            certified: Mutex::new(None),
            ready: watch::Sender::new(false),
            _renewal: renewal,
        }
    }

    /// When the certificate in use ends.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|current| current.expires)
    }

    /// Installs a certificate that was checked.
    pub(super) fn install(
        &self,
        certified: Certified,
        bundle: &watch::Sender<Option<Arc<TrustBundle>>>,
    ) -> Result<(), Error> {
        let expires = certified.expires;
        let mut slot = self.certified.lock();
        let previous = slot.replace(certified);
        if let Err(error) = self.publish(slot.as_ref(), bundle) {
            *slot = previous;
            return Err(error);
        }
        drop(slot);
        let stats = &self.stats;
        stats
            .expiration_timestamp
            .store(unix_seconds(expires), Ordering::Relaxed);
        stats
            .refresh_timestamp
            .store(unix_seconds(SystemTime::now()), Ordering::Relaxed);
        count(&stats.refreshed);
        self.ready.send_replace(true);
        Ok(())
    }

    /// Makes the configurations anew for a bundle that has changed.
    ///
    /// A certificate that does not chain to the new bundle stays in use, as nothing better is
    /// there, and is renewed at once.
    pub(super) fn rebuild(
        &self,
        bundle: &watch::Sender<Option<Arc<TrustBundle>>>,
    ) -> Result<(), Error> {
        let slot = self.certified.lock();
        self.publish(slot.as_ref(), bundle)?;
        if let (Some(certified), Some(bundle)) = (slot.as_ref(), bundle.borrow().as_ref())
            && check_chain(&certified.key.cert, bundle, SystemTime::now()).is_err()
        {
            self.hurry.notify_one();
        }
        Ok(())
    }

    /// The lock on `certified` is held, and the bundle is read below it: of a new certificate and
    /// a new bundle at the same time, the later one sees both.
    fn publish(
        &self,
        certified: Option<&Certified>,
        bundle: &watch::Sender<Option<Arc<TrustBundle>>>,
    ) -> Result<(), Error> {
        let bundle = bundle.borrow().clone();
        if let (Some(certified), Some(bundle)) = (certified, bundle) {
            let credentials = Credentials::new(
                self.identity.clone(),
                Arc::clone(&certified.key),
                certified.expires,
                &bundle,
            )?;
            self.current.store(Some(Arc::new(credentials)));
        }
        Ok(())
    }
}
