//! The identities of the node and the tasks that keep their certificates fresh.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    runtime,
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};
use weft_api::model::Identity;
use weft_runtime::{backoff::Backoff, logging::report};

use super::{
    CaClient, CertifyError, Handle, InvalidBundle, Refused, Stats, TrustBundle,
    entry::Entry,
    request::{self, RequestError},
    stats::count,
    verify,
};

/// Requests to the controller at one time, over all identities.
const MAX_IN_FLIGHT: usize = 8;
/// Share of the remaining life after which a certificate is renewed, and how much earlier than
/// that it may happen, so that the identities of a node do not ask all at once.
const RENEW_AT: f64 = 0.7;
const RENEW_JITTER: f64 = 0.1;
/// Waits after a failure: short while there is no certificate and a pod waits for it.
const FIRST_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
const RENEW_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
/// Longest sleep between two looks at the clock: it may have been set.
const LOOK_AGAIN: Duration = Duration::from_mins(5);
/// Shortest such sleep, near a certificate's end.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);

/// Certificates of all workloads. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    ca: CaClient,
    bundle: watch::Sender<Option<Arc<TrustBundle>>>,
    entries: Mutex<HashMap<Identity, Weak<Entry>>>,
    in_flight: Semaphore,
    stats: Stats,
    tasks: TaskTracker,
    runtime: runtime::Handle,
}

/// State of one identity, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whose.
    pub identity: Identity,
    /// When the certificate ends; `None` before the first.
    pub expires: Option<SystemTime>,
    /// Handles to it.
    pub users: usize,
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("no request was made")]
    Request(#[from] RequestError),
    #[error("no certificate came")]
    Certify(#[from] CertifyError),
    #[error("the certificate is refused")]
    Refused(#[from] Refused),
    #[error("there is no trust bundle")]
    NoBundle,
}

impl Store {
    /// Makes a store whose tasks run on the present runtime. Without a bundle nothing is asked
    /// for until [`Store::set_bundle`] brings one.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(ca: CaClient, bundle: Option<TrustBundle>) -> Self {
        Self(Arc::new(Inner {
            ca,
            bundle: watch::Sender::new(bundle.map(Arc::new)),
            entries: Mutex::default(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            stats: Stats::default(),
            tasks: TaskTracker::new(),
            runtime: runtime::Handle::current(),
        }))
    }

    /// The handle of an identity; its first user has the certificate fetched.
    pub fn acquire(&self, identity: &Identity) -> Handle {
        let mut entries = self.0.entries.lock();
        if let Some(entry) = entries.get(identity).and_then(Weak::upgrade) {
            return Handle(entry);
        }
        let stop = CancellationToken::new();
        let entry = Arc::new(Entry::new(identity.clone(), stop.clone().drop_guard()));
        entries.retain(|_identity, entry| entry.strong_count() > 0);
        entries.insert(identity.clone(), Arc::downgrade(&entry));
        drop(entries);
        let keep = keep_fresh(
            Arc::clone(&self.0),
            Arc::downgrade(&entry),
            identity.clone(),
            Arc::clone(&entry.hurry),
        );
        let task = stop.run_until_cancelled_owned(keep);
        self.0.tasks.spawn_on(task, &self.0.runtime);
        Handle(entry)
    }

    /// Replaces the trust bundle for every identity. One that does not parse changes nothing, nor
    /// does the one that is in use, which is sent again whenever the controller's stream breaks.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn set_bundle(&self, pem: &str) -> Result<(), InvalidBundle> {
        let bundle = match TrustBundle::from_pem(pem) {
            Ok(bundle) => bundle,
            Err(error) => {
                count(&self.0.stats.bundles_refused);
                return Err(error);
            }
        };
        if self.bundle().is_some_and(|current| *current == bundle) {
            return Ok(());
        }
        info!(anchors = bundle.len(), "trust bundle installed");
        count(&self.0.stats.bundles);
        self.0.bundle.send_replace(Some(Arc::new(bundle)));
        for entry in self.entries() {
            if let Err(error) = entry.rebuild(&self.0.bundle) {
                error!(identity = %entry.identity, error = %report(&error), "trust bundle not applied");
            }
        }
        Ok(())
    }

    /// The trust bundle in use.
    pub fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.0.bundle.borrow().clone()
    }

    /// Numbers over all identities.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// State of every identity, by name.
    pub fn statuses(&self) -> Vec<Status> {
        let mut statuses: Vec<_> = self
            .entries()
            .iter()
            .map(|entry| Status {
                identity: entry.identity.clone(),
                expires: entry.expires(),
                users: Arc::strong_count(entry) - 1,
            })
            .collect();
        statuses.sort_by(|a, b| a.identity.cmp(&b.identity));
        statuses
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.0
            .entries
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

/// Fetches, installs, sleeps, and again. Ends when the last handle goes: it is cancelled then.
/// Therefore it holds no entry over an await.
async fn keep_fresh(store: Arc<Inner>, entry: Weak<Entry>, identity: Identity, hurry: Arc<Notify>) {
    let mut bundle = store.bundle.subscribe();
    if bundle.wait_for(Option::is_some).await.is_err() {
        return;
    }
    drop(bundle);
    let mut backoff = Backoff::new(FIRST_BACKOFF.0, FIRST_BACKOFF.1, 0.5);
    let mut expires = None;
    loop {
        let outcome = renew(&store, &entry, &identity).await;
        let wait = match outcome {
            Ok(until) => {
                expires = Some(until);
                backoff = Backoff::new(RENEW_BACKOFF.0, RENEW_BACKOFF.1, 0.5);
                renewal_delay(until)
            }
            Err(error) => {
                note_failure(&store, &entry, &identity, &error);
                backoff.next(rand::random())
            }
        };
        tokio::select! {
            () = sleep(wait, &mut expires, &store.stats, &identity) => {}
            () = hurry.notified() => info!(%identity, "certificate renewed early: the trust bundle has changed"),
        }
    }
}

async fn renew(
    store: &Inner,
    entry: &Weak<Entry>,
    identity: &Identity,
) -> Result<SystemTime, RenewError> {
    let request = request::make(identity)?;
    let answer = {
        let _permit = store.in_flight.acquire().await;
        store.ca.certify(identity, &request.csr).await?
    };
    let Some(bundle) = store.bundle.borrow().clone() else {
        return Err(RenewError::NoBundle);
    };
    let certified = verify::certify(
        identity,
        request.key,
        answer.chain,
        answer.valid_until,
        &bundle,
    )?;
    let expires = certified.expires;
    if let Some(entry) = entry.upgrade() {
        entry
            .install(certified, &store.bundle)
            .map_err(Refused::Unusable)?;
        count(&store.stats.refreshed);
        info!(%identity, "certificate installed");
    }
    Ok(expires)
}

fn note_failure(store: &Inner, entry: &Weak<Entry>, identity: &Identity, error: &RenewError) {
    count(&store.stats.failed);
    if let Some(entry) = entry.upgrade() {
        count(&entry.stats.failed);
    }
    warn!(%identity, error = %report(error), "certificate not renewed");
}

fn renewal_delay(expires: SystemTime) -> Duration {
    let left = expires
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    left.mul_f64(RENEW_AT - RENEW_JITTER * rand::random::<f64>())
}

/// Sleeps, with an eye on the wall clock, which certificates go by and which may be set. Says
/// once that a certificate has ended, and takes it from `expires` then.
async fn sleep(
    wait: Duration,
    expires: &mut Option<SystemTime>,
    stats: &Stats,
    identity: &Identity,
) {
    let deadline = Instant::now() + wait;
    let wall = SystemTime::now() + wait;
    loop {
        let (now, clock) = (Instant::now(), SystemTime::now());
        if expires.take_if(|expires| *expires <= clock).is_some() {
            count(&stats.expired);
            error!(%identity, "certificate has ended and there is no other: peers will refuse it");
        }
        if now >= deadline || clock >= wall {
            return;
        }
        let ends = expires
            .and_then(|expires| expires.duration_since(clock).ok())
            .unwrap_or(LOOK_AGAIN);
        sleep_until(deadline.min(now + ends.clamp(SHORTEST_LOOK, LOOK_AGAIN))).await;
    }
}
