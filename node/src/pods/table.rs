//! The pods of this node that have a sandbox, and what others ask about them.
//!
//! Each pod has a lock of its own: what happens to one pod happens in turn, and no pod waits for
//! another. Work that blocks (namespaces, the kernel side) runs on threads that may. An entry stays
//! from CNI ADD to CNI DEL, meshed or not, so that a pod can be enrolled later where it runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_api::model::{Guard, Pod};

use super::{
    desired::Desired,
    enrol::{Enrolled, Listener, Tools},
    netns::Netns,
    record::{Made, Records, Sandbox},
    sockets::Family,
    status::{PodStatus, Standing},
};
use weft_common::MAX_PODS;

use crate::{lend::Hub, metrics::Metrics};

/// Settings of enrolment.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most that the guard does, whatever a pod asks for.
    pub guard: Guard,
    /// How long a CNI ADD may take.
    pub budget: Duration,
    /// How long connections of a pod that leaves the mesh may go on.
    pub leave_grace: Duration,
    /// How long agents may take to bring back listeners after a restart of this process.
    pub adopt_grace: Duration,
    /// Time between two looks at every pod.
    pub interval: Duration,
    /// Whether connections from before a late enrolment are cut.
    pub cut_legacy: bool,
    /// The run directory.
    pub run_dir: PathBuf,
}

/// What the table is made of.
pub struct Parts {
    /// What enrolment works with.
    pub tools: Tools,
    /// What the controller wants.
    pub desired: Arc<Desired>,
    /// What agents are told.
    pub hub: Arc<Hub>,
    /// What is remembered.
    pub records: Records,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Settings.
    pub config: Config,
}

/// See the module. Shared by `Arc`.
pub struct Pods {
    pub(super) parts: Parts,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    slots: Mutex<BTreeSet<u32>>,
    pub(super) tasks: TaskTracker,
}

/// One pod.
pub(super) struct Entry {
    pub(super) uid: String,
    /// Its turn. Held while something is done to the pod.
    pub(super) state: Arc<tokio::sync::Mutex<State>>,
    /// Calls off what is being done; replaced by every CNI ADD.
    pub(super) cancel: Mutex<CancellationToken>,
    /// Where dial sockets are made; there as long as the pod may be lent to.
    pub(super) netns: Mutex<Option<Arc<Netns>>>,
    pub(super) status: Mutex<PodStatus>,
    /// The sandbox, readable while the pod is being worked on.
    pub(super) sandbox: Mutex<Option<Sandbox>>,
}

/// What is known about one pod.
#[derive(Default)]
pub(super) struct State {
    pub(super) sandbox: Option<Sandbox>,
    pub(super) enrolled: Option<Enrolled>,
    /// What a former process made, until it is adopted.
    pub(super) adopting: Option<Adopting>,
    /// The record by which it was enrolled or changed last.
    pub(super) pod: Option<Arc<Pod>>,
    /// Why it is not where it should be.
    pub(super) trouble: Option<String>,
    pub(super) faults: Vec<String>,
}

/// A pod that a former process enrolled.
pub(super) struct Adopting {
    pub(super) made: Made,
    /// What agents brought back so far.
    pub(super) held: Vec<Listener>,
    /// When what is missing is made anew.
    pub(super) deadline: tokio::time::Instant,
}

impl Pods {
    /// Makes an empty table.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            entries: Mutex::default(),
            slots: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// What is shown about every pod.
    pub fn status(&self) -> Vec<PodStatus> {
        let entries = self.entries();
        entries
            .iter()
            .map(|entry| entry.status.lock().clone())
            .collect()
    }

    /// Uid of the enrolled pod whose namespace has this cookie.
    pub fn by_cookie(&self, cookie: u64) -> Option<PodStatus> {
        self.status()
            .into_iter()
            .find(|status| status.cookie == Some(cookie))
    }

    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().values().cloned().collect()
    }

    pub(super) fn find(&self, uid: &str) -> Option<Arc<Entry>> {
        self.entries.lock().get(uid).cloned()
    }

    pub(super) fn entry(&self, uid: &str) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        Arc::clone(
            entries
                .entry(uid.to_owned())
                .or_insert_with(|| Arc::new(Entry::new(uid))),
        )
    }

    pub(super) fn drop_entry(&self, entry: &Arc<Entry>) {
        let mut entries = self.entries.lock();
        if entries
            .get(&entry.uid)
            .is_some_and(|present| Arc::ptr_eq(present, entry))
        {
            entries.remove(&entry.uid);
        }
    }

    /// Takes the lowest free slot.
    pub(super) fn take_slot(&self) -> Option<u32> {
        let mut slots = self.slots.lock();
        let free = (0..MAX_PODS).find(|slot| !slots.contains(slot))?;
        slots.insert(free);
        Some(free)
    }

    /// Takes a given slot, for adoption. False if it is taken.
    pub(super) fn reserve_slot(&self, slot: u32) -> bool {
        slot < MAX_PODS && self.slots.lock().insert(slot)
    }

    pub(super) fn free_slot(&self, slot: u32) {
        self.slots.lock().remove(&slot);
    }

    /// The guard that a pod gets: what it asks for, up to the ceiling.
    pub(super) fn guard(&self, wanted: Guard) -> Guard {
        let strength = |guard: Guard| match guard {
            Guard::Off => 0,
            Guard::Audit => 1,
            Guard::Enforce => 2,
        };
        let ceiling = self.parts.config.guard;
        if strength(wanted) > strength(ceiling) {
            ceiling
        } else {
            wanted
        }
    }

    /// Makes tagged dial sockets in a pod's namespace.
    ///
    /// # Errors
    /// When the pod is not meshed, or the kernel refuses.
    pub(super) fn make_sockets(
        &self,
        uid: &str,
        family: Family,
        count: usize,
    ) -> Result<Vec<OwnedFd>, String> {
        use std::os::fd::AsFd as _;
        use weft_runtime::logging::report;

        let entry = self.find(uid);
        let netns = entry.and_then(|entry| entry.netns.lock().clone());
        let netns = netns.ok_or_else(|| format!("pod {uid} is not meshed"))?;
        let tools = &self.parts.tools;
        let sockets = tools
            .inside
            .dial(&netns, family, count)
            .map_err(|error| report(&error).to_string())?;
        for socket in &sockets {
            tools
                .datapath
                .tag_lent(socket.as_fd())
                .map_err(|error| report(&error).to_string())?;
        }
        Ok(sockets.into_iter().map(OwnedFd::from).collect())
    }

    /// Shows the pod's state, and counts pods by it.
    pub(super) fn publish(&self, entry: &Entry, state: &State, standing: Standing) {
        *entry.status.lock() = state.status(&entry.uid, standing);
        let statuses = self.status();
        let counts = Standing::ALL.map(|standing| {
            let pods = statuses.iter().filter(|pod| pod.standing == standing);
            (
                standing.name(),
                i64::try_from(pods.count()).unwrap_or(i64::MAX),
            )
        });
        self.parts.metrics.set_pods(&counts);
        let legacy = statuses.iter().map(|status| status.legacy_connections);
        self.parts.metrics.set_legacy(legacy.sum());
    }
}

impl Entry {
    fn new(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            state: Arc::default(),
            cancel: Mutex::default(),
            netns: Mutex::default(),
            sandbox: Mutex::default(),
            status: Mutex::new(PodStatus {
                uid: uid.to_owned(),
                ..PodStatus::default()
            }),
        }
    }

    /// Id of the sandbox; empty if there is none.
    pub(super) fn container_id(&self) -> String {
        let sandbox = self.sandbox.lock();
        let id = sandbox.as_ref().map(|sandbox| sandbox.container_id.clone());
        id.unwrap_or_default()
    }

    /// Whether the sandbox is the one that is known.
    pub(super) fn has_sandbox(&self, sandbox: &Sandbox) -> bool {
        let known = self.sandbox.lock();
        known
            .as_ref()
            .is_some_and(|known| known.netns_id == sandbox.netns_id)
    }

    /// Whether the pod cannot be any more once the given sandbox is: that has its namespace, or an
    /// address that the runtime had given it.
    pub(super) fn is_replaced_by(&self, other: &Sandbox) -> bool {
        self.sandbox.lock().as_ref().is_some_and(|own| {
            let shares_address = own.ips.iter().any(|ip| other.ips.contains(ip));
            own.uid != other.uid && (own.netns_id == other.netns_id || shares_address)
        })
    }

    /// Copies what is readable without the lock.
    pub(super) fn note_sandbox(&self, state: &State) {
        self.sandbox.lock().clone_from(&state.sandbox);
    }

    /// The token of what is being done now.
    pub(super) fn cancel_token(&self) -> CancellationToken {
        self.cancel.lock().clone()
    }

    /// Calls off what is being done now.
    pub(super) fn call_off(&self) {
        self.cancel.lock().cancel();
    }

    /// Lets new work be done after something was called off.
    pub(super) fn resume(&self) {
        *self.cancel.lock() = CancellationToken::new();
    }
}

impl State {
    fn status(&self, uid: &str, standing: Standing) -> PodStatus {
        let (namespace, name) = match &self.sandbox {
            Some(sandbox) => (sandbox.namespace.clone(), sandbox.name.clone()),
            None => Default::default(),
        };
        let mut status = PodStatus {
            uid: uid.to_owned(),
            namespace,
            name,
            standing,
            reason: self.trouble.clone().unwrap_or_default(),
            faults: self.faults.clone(),
            ips: self.ips(),
            ..PodStatus::default()
        };
        if let Some(enrolled) = &self.enrolled {
            status.cookie = Some(enrolled.cookie);
            status.slot = Some(enrolled.slot);
            let names = enrolled.listeners.iter().map(|l| l.kind.name().to_owned());
            status.listeners = names.collect();
            status.guard = guard_name(enrolled.guard).to_owned();
            status.legacy_connections = enrolled.legacy.len();
            status.foreign_rules = enrolled.foreign_rules.len();
            status.since = Some(enrolled.since);
        }
        status
    }

    /// The pod's addresses: as the kernel has them, else as CNI reported them.
    pub(super) fn ips(&self) -> Vec<IpAddr> {
        match (&self.enrolled, &self.sandbox) {
            (Some(enrolled), _) => enrolled.view.addresses.clone(),
            (None, Some(sandbox)) => sandbox.ips.clone(),
            (None, None) => Vec::new(),
        }
    }
}

const fn guard_name(guard: Guard) -> &'static str {
    match guard {
        Guard::Off => "off",
        Guard::Audit => "audit",
        Guard::Enforce => "enforce",
    }
}
