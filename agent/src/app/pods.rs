//! The pods of this node: made, changed and taken away as weft-node says.
//!
//! One task reads weft-node's events in order. A pod's connections are accepted once it has a
//! certificate; until then they wait in the kernel's queue, or go to an older agent, and the pod's
//! `/ready` says 503. `Serving`, which sends older agents away, is said when every pod announced
//! so far is accepted for, or when [`SERVE_WITHIN`] has passed.

use std::{collections::BTreeMap, net::TcpListener, sync::Arc, time::Duration};

use anyhow::bail;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};
use weft_api::model::{Pod, PodUid};
use weft_runtime::ready::{Pending, Readiness};

use crate::{
    admin::{PodAdmin, serve_pod},
    context::PodContext,
    discovery::{Discovery, Watched, model::InboundServer},
    identity::Store,
    metrics::{Certificate, NodeMetrics, PodMetrics, PodState},
    policy::limit::Limits,
    sockets::{Event, Link, ListenerKind, Stock, listeners},
    worker::{Listeners, Workers},
    workload::Workload,
};

/// How long a new agent waits for its pods' certificates before it takes over from an older one. A
/// pod whose certificate the controller refuses must not keep the node on the older agent for ever.
const SERVE_WITHIN: Duration = Duration::from_secs(10);

/// What the pods of a node are made of.
pub(super) struct Settings {
    pub(super) workers: Workers,
    pub(super) store: Store,
    pub(super) discovery: Discovery,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) link: Link,
    pub(super) readiness: Readiness,
    pub(super) drain_timeout: Duration,
}

/// The pods of this node, and what serves them.
pub(super) struct Pods {
    with: Settings,
    pods: BTreeMap<PodUid, Entry>,
    /// Gone, with connections that are still open.
    leaving: Vec<Arc<PodContext>>,
    table: Arc<Table>,
    admin: TaskTracker,
    /// Each task ends when the pod that it gives has a certificate.
    certified: JoinSet<PodUid>,
    /// When `Serving` is said at the latest, if it has yet to be.
    serving_due: Option<Instant>,
    /// The process is not ready before weft-node has announced its pods once.
    snapshot: Option<Pending>,
}

struct Entry {
    context: Arc<PodContext>,
    /// Policies of declared ports are kept up to date from the start.
    declared: Vec<Arc<Watched<InboundServer>>>,
    /// Listeners that wait for the certificate, and the task that does.
    waiting: Option<(Listeners, AbortHandle)>,
    /// Dropped to stop serving the admin port.
    admin: DropGuard,
}

/// The pods as others may see them.
#[derive(Default)]
pub(super) struct Table(Mutex<BTreeMap<PodUid, Arc<PodContext>>>);

impl Pods {
    pub(super) fn new(with: Settings) -> Self {
        let snapshot = Some(with.readiness.wait_for());
        Self {
            with,
            pods: BTreeMap::new(),
            leaving: Vec::new(),
            table: Arc::default(),
            admin: TaskTracker::new(),
            certified: JoinSet::new(),
            serving_due: None,
            snapshot,
        }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// Serves pods until `drain` is cancelled or weft-node says so, then drains, cancels `drained`
    /// and waits for `stop`.
    ///
    /// # Errors
    /// When a worker ends by itself: its connections are lost, and so is its share of new ones.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        drain: CancellationToken,
        drained: CancellationToken,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let due = self.serving_due;
            let event = tokio::select! {
                () = stop.cancelled() => break,
                () = drain.cancelled() => Event::Drain,
                Some(ended) = self.certified.join_next() => {
                    // An error is a task that was aborted with its pod or its listeners.
                    if let Ok(uid) = ended {
                        self.accept_for(&uid);
                    }
                    self.say_serving();
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.say_serving();
                    continue;
                }
                Some(worker) = self.with.workers.ended() => bail!("worker {worker} ended"),
                event = events.recv() => match event {
                    Some(event) => event,
                    None => bail!("nobody brings events of weft-node any more"),
                },
            };
            if matches!(event, Event::Drain) {
                self.drain(&mut events).await;
                drained.cancel();
                stop.cancelled().await;
                break;
            }
            self.apply(event);
        }
        self.with.workers.stop();
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        self.leaving.retain(|pod| !pod.connections.is_empty());
        match event {
            Event::PodAdded {
                pod,
                ips,
                listeners,
                stock,
            } => {
                let workload = Workload::new(&pod, &ips);
                let context = match self.pods.get(&pod.uid) {
                    None => self.context(workload, stock, None),
                    Some(known) if known.context.workload.ips == workload.ips => {
                        Arc::clone(&known.context)
                    }
                    Some(known) => {
                        let series = Arc::clone(&known.context.metrics);
                        self.remove(&pod.uid);
                        self.context(workload, stock, Some(series))
                    }
                };
                self.serve(context, listeners);
                self.change(&pod);
            }
            Event::PodChanged { pod } => self.change(&pod),
            Event::PodRemoved { uid } => self.remove(&uid),
            Event::SnapshotSent => {
                if self.snapshot.take().is_none() {
                    self.with.metrics.agent.lend_reconnects.inc();
                }
                self.serving_due = Some(Instant::now() + SERVE_WITHIN);
            }
            Event::Drain => {}
        }
        self.say_serving();
        let count = i64::try_from(self.pods.len()).unwrap_or(i64::MAX);
        self.with.metrics.agent.pods.set(count);
    }

    /// Says `Serving` if it is to be said and every pod is accepted for, or it is due.
    fn say_serving(&mut self) {
        let Some(due) = self.serving_due else { return };
        let without = self
            .pods
            .values()
            .filter(|pod| pod.waiting.is_some())
            .count();
        if without > 0 && Instant::now() < due {
            return;
        }
        if without > 0 {
            warn!(
                pods = without,
                "serving, and some pods still have no certificate"
            );
        }
        self.serving_due = None;
        self.with.link.serving();
        info!(pods = self.pods.len(), "serving");
    }

    /// Gives the workers the listeners of a pod that has got its certificate.
    fn accept_for(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let Some((listeners, _ended)) = entry.waiting.take() else {
            return;
        };
        if let Err(error) = self.with.workers.add(&entry.context, &listeners) {
            warn!(pod = %entry.context.workload.name, %error, "listeners cannot be used");
        }
    }

    /// Makes what connections of a pod need. `series` are those of the pod before its addresses
    /// changed.
    fn context(
        &self,
        workload: Workload,
        stock: Arc<Stock>,
        series: Option<Arc<PodMetrics>>,
    ) -> Arc<PodContext> {
        let uid = workload.uid.clone();
        let metrics = series.unwrap_or_else(|| Arc::new(series_of(&workload)));
        let context = Arc::new(PodContext {
            identity: self.with.store.acquire(&workload.identity),
            workload: Arc::new(workload),
            stock,
            metrics: Arc::clone(&metrics),
            discovery: self.with.discovery.clone(),
            drain: CancellationToken::new(),
            connections: TaskTracker::new(),
            limits: Limits::default(),
        });
        let state = Arc::clone(&context) as Arc<dyn PodState>;
        self.with.metrics.add_pod(uid.clone(), metrics, state);
        self.table.0.lock().insert(uid, Arc::clone(&context));
        context
    }

    /// Accepts on these listeners, and on no earlier ones of the pod.
    fn serve(&mut self, context: Arc<PodContext>, offered: Vec<(ListenerKind, TcpListener)>) {
        let workload = Arc::clone(&context.workload);
        let stop = CancellationToken::new();
        let mut of_workers = Listeners::default();
        for (kind, listener) in offered {
            match kind {
                ListenerKind::Outbound(_) => of_workers.outbound.push(listener),
                ListenerKind::Inbound(_) => of_workers.inbound.push(listener),
                ListenerKind::Admin(_) => match listeners::register(&listener) {
                    Ok(listener) => {
                        let metrics = Arc::clone(&self.with.metrics);
                        let admin = PodAdmin::new(Arc::clone(&context), metrics);
                        self.admin.spawn(serve_pod(admin, listener, stop.clone()));
                    }
                    Err(error) => {
                        warn!(pod = %workload.name, %error, "admin listener cannot be used");
                    }
                },
            }
        }
        // Where the certificate is there already, the task ends at once.
        let (identity, uid) = (context.identity.clone(), workload.uid.clone());
        let certified = self.certified.spawn({
            let uid = uid.clone();
            async move {
                identity.ready().await;
                uid
            }
        });
        let waiting = Some((of_workers, certified));
        let admin = stop.drop_guard();
        match self.pods.get_mut(&uid) {
            Some(entry) => {
                entry.admin = admin;
                if let Some((_replaced, certified)) = std::mem::replace(&mut entry.waiting, waiting)
                {
                    certified.abort();
                }
            }
            None => {
                let entry = Entry {
                    context,
                    declared: Vec::new(),
                    waiting,
                    admin,
                };
                self.pods.insert(uid, entry);
            }
        }
    }

    fn change(&mut self, pod: &Pod) {
        let Some(entry) = self.pods.get_mut(&pod.uid) else {
            return;
        };
        let workload = &entry.context.workload;
        workload.apply(pod);
        let ports = pod.settings.container_ports.iter();
        entry.declared = ports
            .map(|port| self.with.discovery.inbound(workload, *port))
            .collect();
    }

    fn remove(&mut self, uid: &PodUid) {
        self.with.workers.remove(uid);
        self.with.metrics.remove_pod(uid);
        self.table.0.lock().remove(uid);
        if let Some(entry) = self.pods.remove(uid) {
            if let Some((_listeners, certified)) = entry.waiting {
                certified.abort();
            }
            drop(entry.admin);
            leave(&entry.context);
            self.leaving.push(entry.context);
        }
    }

    /// Accepts nothing more and waits for what is open.
    async fn drain(&mut self, events: &mut mpsc::Receiver<Event>) {
        self.with.readiness.drain();
        self.with.workers.stop_accepting();
        let pods = self.pods.values().map(|entry| &entry.context);
        let all: Vec<_> = pods.chain(&self.leaving).map(Arc::clone).collect();
        let open: u32 = all.iter().map(|pod| pod.limits.connections.used()).sum();
        info!(pods = self.pods.len(), connections = open, "draining");
        for pod in &all {
            leave(pod);
        }
        let finished = async {
            for pod in &all {
                pod.connections.wait().await;
            }
        };
        // What weft-node still announces is for a newer agent. It is read nonetheless, because
        // dial sockets for what finishes come behind it.
        let ignored = async {
            while events.recv().await.is_some() {}
            std::future::pending::<()>().await;
        };
        let finished = async {
            tokio::select! {
                () = finished => {}
                () = ignored => {}
            }
        };
        if timeout(self.with.drain_timeout, finished).await.is_err() {
            let open: u32 = all.iter().map(|pod| pod.limits.connections.used()).sum();
            warn!(connections = open, "cut: they did not finish in time");
        }
    }
}

/// Tells a pod's connections to finish.
fn leave(pod: &PodContext) {
    pod.drain.cancel();
    pod.connections.close();
}

fn series_of(workload: &Workload) -> PodMetrics {
    let labels = [
        ("namespace", &*workload.namespace),
        ("pod", &*workload.name),
        (label_of_owner(&workload.owner.0), &*workload.owner.1),
    ];
    PodMetrics::new(labels.into_iter().filter(|(key, _)| !key.is_empty()))
}

/// Linkerd's label for a kind of owner: a label `job` is Prometheus' own.
fn label_of_owner(kind: &str) -> &str {
    match kind {
        "job" => "k8s_job",
        kind => kind,
    }
}

impl Table {
    /// The pods, for people.
    pub(super) fn describe(&self) -> Value {
        let pods: Vec<_> = self.0.lock().values().cloned().collect();
        let pods = pods.iter().map(|pod| {
            let workload = &pod.workload;
            let ips: Vec<_> = workload.ips.iter().map(ToString::to_string).collect();
            let expires = pod.certificate().expires;
            let expires = expires.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            json!({
                "uid": workload.uid.as_str(),
                "namespace": &*workload.namespace,
                "pod": &*workload.name,
                "identity": workload.identity.as_str(),
                "ips": ips,
                "certificate_expires": expires.map(|at| at.as_secs()),
                "connections": pod.connections_open(),
                "draining": pod.drain.is_cancelled(),
            })
        });
        Value::Array(pods.collect())
    }
}

impl PodState for PodContext {
    fn connections_open(&self) -> usize {
        usize::try_from(self.limits.connections.used()).unwrap_or(usize::MAX)
    }

    fn certificate(&self) -> Certificate {
        use std::{
            sync::atomic::{AtomicU64, Ordering::Relaxed},
            time::UNIX_EPOCH,
        };
        let stats = self.identity.stats();
        let time = |seconds: &AtomicU64| match seconds.load(Relaxed) {
            0 => None,
            seconds => Some(UNIX_EPOCH + Duration::from_secs(seconds)),
        };
        Certificate {
            expires: time(&stats.expiration_timestamp),
            refreshed: time(&stats.refresh_timestamp),
            refreshes: stats.refreshed.load(Relaxed),
            failures: stats.failed.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
