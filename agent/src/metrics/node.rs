//! The series of all pods of the node, and the two pages made of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus_client::{encoding::text, registry::Registry};
use weft_api::model::PodUid;

use super::{
    AgentMetrics, ClientTls, HttpMetrics, PodMetrics,
    family::Head,
    labels::Labels,
    process,
    render::{self, Dialect, Sample, Scope},
    series::Series,
};

/// What is read of a pod when somebody asks, and not counted.
pub trait PodState: Send + Sync {
    /// Connections that are open, either way.
    fn connections_open(&self) -> usize;

    /// State of its certificate.
    fn certificate(&self) -> Certificate;
}

/// State of a pod's certificate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Certificate {
    /// When it expires; `None` if there is none.
    pub expires: Option<SystemTime>,
    /// When it was last renewed.
    pub refreshed: Option<SystemTime>,
    /// Times that it was renewed.
    pub refreshes: u64,
    /// Times that renewing failed.
    pub failures: u64,
}

/// The series of all pods of the node and of the agent itself.
pub struct NodeMetrics {
    /// What the agent counts about itself.
    pub agent: AgentMetrics,
    pods: Mutex<BTreeMap<PodUid, Pod>>,
    control: Mutex<Series<HttpMetrics>>,
    weft: Registry,
    process: Registry,
}

#[derive(Clone)]
struct Pod {
    metrics: Arc<PodMetrics>,
    state: Arc<dyn PodState>,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        let (mut weft, mut process) = (Registry::default(), Registry::default());
        process::register(&mut process);
        Self {
            agent: AgentMetrics::register(&mut weft),
            pods: Mutex::default(),
            control: Mutex::default(),
            weft,
            process,
        }
    }
}

impl NodeMetrics {
    /// Shows a pod's series on the node's page until it is removed.
    pub fn add_pod(&self, uid: PodUid, metrics: Arc<PodMetrics>, state: Arc<dyn PodState>) {
        self.pods.lock().insert(uid, Pod { metrics, state });
    }

    /// Takes a pod's series away.
    pub fn remove_pod(&self, uid: &PodUid) {
        self.pods.lock().remove(uid);
    }

    /// Requests to the controller: `control_request_total` and its kin.
    pub fn control(&self, addr: &str, tls: &ClientTls) -> Arc<HttpMetrics> {
        let mut text = Labels::default();
        text.push("addr", addr).client_tls(tls);
        let mut control = self.control.lock();
        control
            .resolve(text.into_text(), usize::MAX)
            .unwrap_or_default()
    }

    /// The page of one pod: only its own series, without labels that say whose they are.
    pub fn render_pod(&self, uid: &PodUid) -> Option<String> {
        let pod = self.pods.lock().get(uid).cloned()?;
        let mut scope = pod.scope(false);
        scope.control = self.control.lock().snapshot();
        let text = render::render(&[scope], Dialect::Linkerd);
        Some(finish(text, &[&self.process]))
    }

    /// The page of the node: every pod's series with its labels, and the agent's own.
    pub fn render_node(&self) -> String {
        let pods: Vec<Pod> = self.pods.lock().values().cloned().collect();
        let mut scopes: Vec<Scope> = pods.iter().map(|pod| pod.scope(true)).collect();
        scopes.push(Scope {
            control: self.control.lock().snapshot(),
            ..Scope::default()
        });
        let text = render::render(&scopes, Dialect::OpenMetrics);
        finish(text, &[&self.process, &self.weft])
    }

    /// Drops series that nobody uses any more. To be called every minute or so.
    pub fn retire_idle(&self) {
        let pods: Vec<Pod> = self.pods.lock().values().cloned().collect();
        for pod in pods {
            pod.metrics.retire_idle();
        }
    }
}

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeMetrics")
    }
}

impl Pod {
    fn scope(&self, labelled: bool) -> Scope {
        let mut scope = self.metrics.scope(labelled);
        let mut sample = |head, labels, value| {
            scope.others.push(Sample {
                head,
                labels,
                value,
            });
        };
        let certificate = self.state.certificate();
        if let Some(expires) = certificate.expires {
            sample(EXPIRATION, "", unix_seconds(expires));
        }
        if let Some(refreshed) = certificate.refreshed {
            sample(REFRESH, "", unix_seconds(refreshed));
        }
        if certificate.refreshes > 0 {
            sample(REFRESHES, "result=\"ok\"", count(certificate.refreshes));
        }
        if certificate.failures > 0 {
            sample(REFRESHES, "result=\"error\"", count(certificate.failures));
        }
        if labelled {
            let open = u64::try_from(self.state.connections_open()).unwrap_or(u64::MAX);
            sample(CONNECTIONS, "", count(open));
        }
        scope
    }
}

const EXPIRATION: Head = Head::gauge(
    "control_identity_cert_expiration_timestamp_seconds",
    "Time when the this proxy's current mTLS identity certificate will expire (in seconds since the UNIX epoch).",
);
const REFRESH: Head = Head::gauge(
    "control_identity_cert_refresh_timestamp_seconds",
    "Time when this proxy's current mTLS identity certificate was last updated (in seconds since the UNIX epoch).",
);
const REFRESHES: Head = Head::base_counter(
    "control_identity_cert_refreshes_total",
    "The total number of times this proxy's mTLS identity certificate has been refreshed.",
);
const CONNECTIONS: Head = Head::gauge("weft_connections_open", "Connections open, either way");

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus keeps every value as a double"
)]
fn count(value: u64) -> f64 {
    value as f64
}

/// Appends registries of prometheus-client and the end mark.
fn finish(mut page: String, registries: &[&Registry]) -> String {
    let written = registries
        .iter()
        .try_for_each(|registry| text::encode_registry(&mut page, registry))
        .and_then(|()| text::encode_eof(&mut page));
    if let Err(error) = written {
        tracing::warn!(%error, "metrics cannot be written");
    }
    page
}
