//! The controller as source of answers: which watches there are, and who shares them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::{runtime, time::interval};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;
use weft_api::model::PodUid;

use super::{
    Source, Watched, bundle,
    client::Client,
    defaults,
    endpoints::{self, EndpointSets},
    inbound,
    model::{Destination, EndpointSet, InboundServer, OutboundTarget},
    outbound,
    table::Table,
    tokens,
};
use crate::{
    identity::TokenFile,
    metrics::{AgentMetrics, HttpMetrics, Stream, StreamLabels},
    workload::Workload,
};

/// Outbound targets kept at most. Above, the one that was used longest ago is forgotten.
const MAX_TARGETS: usize = 10_000;
/// Inbound ports kept at most.
const MAX_PORTS: usize = 10_000;
/// How often idle values are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// What discovery needs to ask the controller.
pub struct Settings {
    /// The connection.
    pub channel: Channel,
    /// The node's credential.
    pub token: TokenFile,
    /// This node's name.
    pub node: Arc<str>,
    /// Networks whose addresses may belong to the cluster.
    pub cluster_networks: Arc<[IpNet]>,
    /// Counts calls.
    pub calls: Arc<HttpMetrics>,
    /// Counts streams and updates.
    pub metrics: AgentMetrics,
}

/// Watches of the controller. Made on the control runtime, asked from everywhere.
pub struct Controller {
    client: Client,
    node: Arc<str>,
    cluster_networks: Arc<[IpNet]>,
    targets: Table<(Arc<str>, SocketAddr), OutboundTarget>,
    ports: Table<(PodUid, u16), InboundServer>,
    sets: Arc<EndpointSets>,
    tasks: TaskTracker,
    runtime: runtime::Handle,
    stop: CancellationToken,
}

impl Controller {
    /// Prepares; watches run on the present runtime until `stop` is cancelled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(settings: Settings, stop: CancellationToken) -> Self {
        Self {
            client: Client {
                channel: settings.channel,
                token: settings.token,
                calls: settings.calls,
                metrics: settings.metrics,
                is_answering: Arc::new(AtomicBool::new(true)),
            },
            node: settings.node,
            cluster_networks: settings.cluster_networks,
            targets: Table::new(MAX_TARGETS),
            ports: Table::new(MAX_PORTS),
            sets: Arc::default(),
            tasks: TaskTracker::new(),
            runtime: runtime::Handle::current(),
            stop,
        }
    }

    /// Forgets what is idle and keeps gauges, until stopped.
    pub async fn sweep(&self, stop: CancellationToken) {
        let mut ticks = interval(SWEEP);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.targets.forget_idle();
            self.ports.forget_idle();
            self.sets.forget_dropped();
            for (stream, count) in [
                (Stream::OutboundPolicy, self.targets.len()),
                (Stream::InboundPolicy, self.ports.len()),
                (Stream::Destination, self.sets.snapshot().len()),
            ] {
                let watches = &self.client.metrics.watches;
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                watches.get_or_create(&StreamLabels { stream }).set(count);
            }
        }
    }

    /// Follows the trust bundle until stopped; `install` takes each PEM into use.
    pub async fn follow_bundle(
        &self,
        install: impl FnMut(&str) -> anyhow::Result<()>,
        stop: CancellationToken,
    ) {
        bundle::watch(&self.client, install, &stop).await;
    }

    /// What is known, for people.
    pub fn describe(&self) -> Value {
        let targets = self.targets.snapshot().into_iter().map(|(key, target)| {
            let (namespace, destination) = key;
            json!({
                "namespace": &*namespace,
                "destination": destination.to_string(),
                "version": target.version(),
                "target": target.load().map(|target| describe_target(&target)),
            })
        });
        let ports = self
            .ports
            .snapshot()
            .into_iter()
            .map(|((pod, port), server)| {
                json!({
                    "pod_uid": pod.as_str(),
                    "port": port,
                    "version": server.version(),
                    "server": server.load().map(|server| json!({
                        "protocol": format!("{:?}", server.protocol),
                        "policy": &*server.meta.name,
                        "authorizations": server.authorizations.len(),
                        "routes": server.routes.len(),
                    })),
                })
            });
        let sets = self
            .sets
            .snapshot()
            .into_iter()
            .map(|set| describe_set(&set));
        json!({
            "outbound": targets.collect::<Vec<_>>(),
            "inbound": ports.collect::<Vec<_>>(),
            "endpoints": sets.collect::<Vec<_>>(),
        })
    }

    /// Forgets every answer that nobody else holds.
    #[cfg(test)]
    pub(super) fn forget_all(&self) {
        self.targets.clear();
        self.ports.clear();
    }

    /// Finds or starts endpoint sets on behalf of clients of a namespace.
    fn endpoint_sets(
        &self,
        namespace: &Arc<str>,
    ) -> impl Fn(&Arc<str>) -> Arc<EndpointSet> + Send + Sync + use<> {
        let (sets, client) = (Arc::clone(&self.sets), self.client.clone());
        let (tasks, runtime) = (self.tasks.clone(), self.runtime.clone());
        let stop = self.stop.clone();
        let context_token = tokens::context(namespace, &self.node);
        move |authority| {
            sets.find_or_start(authority, &stop, |set, stop| {
                let authority = Arc::clone(authority);
                let watch =
                    endpoints::watch(client.clone(), authority, context_token.clone(), set, stop);
                tasks.spawn_on(watch, &runtime);
            })
        }
    }

    fn is_in_cluster(&self, ip: IpAddr) -> bool {
        self.cluster_networks.iter().any(|net| net.contains(&ip))
    }

    /// A value without content, a token that ends with it, and the value to fill.
    fn pending<T>(&self) -> (Arc<Watched<T>>, CancellationToken) {
        let stop = self.stop.child_token();
        let guard = stop.clone().drop_guard();
        (Arc::new(Watched::pending(Some(guard))), stop)
    }
}

impl Source for Controller {
    fn outbound(
        &self,
        namespace: &Arc<str>,
        destination: SocketAddr,
    ) -> Arc<Watched<OutboundTarget>> {
        let key = (Arc::clone(namespace), destination);
        let (found, evicted) = self.targets.find_or_start(&key, || {
            let (target, stop) = self.pending();
            let question = outbound::Question {
                namespace: Arc::clone(namespace),
                node: Arc::clone(&self.node),
                destination,
                in_cluster: self.is_in_cluster(destination.ip()),
            };
            let watch = outbound::watch(
                self.client.clone(),
                question,
                Arc::downgrade(&target),
                self.endpoint_sets(namespace),
                stop,
            );
            self.tasks.spawn_on(watch, &self.runtime);
            target
        });
        if evicted {
            self.client.metrics.evictions.inc();
        }
        found
    }

    fn inbound(&self, workload: &Workload, port: u16) -> Arc<Watched<InboundServer>> {
        let key = (workload.uid.clone(), port);
        let (found, evicted) = self.ports.find_or_start(&key, || {
            let (server, stop) = self.pending();
            let question = inbound::Question {
                namespace: Arc::clone(&workload.namespace),
                pod: Arc::clone(&workload.name),
                port,
            };
            let settings = workload.settings.load_full();
            let networks = Arc::clone(&self.cluster_networks);
            let default = move || defaults::server(&settings, port, &networks);
            let watch = inbound::watch(
                self.client.clone(),
                question,
                default,
                Arc::downgrade(&server),
                stop,
            );
            self.tasks.spawn_on(watch, &self.runtime);
            server
        });
        if evicted {
            self.client.metrics.evictions.inc();
        }
        found
    }
}

fn describe_target(target: &OutboundTarget) -> Value {
    json!({
        "protocol": format!("{:?}", target.protocol),
        "authority": target.authority.as_deref(),
        "parent": &*target.parent.name,
        "route": &*target.route.name,
        "destination": match &target.destination {
            Destination::Balance(set) => json!({ "balance": &**set.authority() }),
            Destination::Forward(endpoint) => json!({
                "forward": endpoint.addr.to_string(),
                "identity": endpoint.identity().map(ToString::to_string),
            }),
            Destination::Forbidden(reason) => json!({ "forbidden": reason }),
        },
    })
}

fn describe_set(set: &EndpointSet) -> Value {
    let view = set.load();
    let endpoints = view.list.iter().map(|endpoint| {
        json!({
            "addr": endpoint.addr.to_string(),
            "identity": endpoint.identity().map(ToString::to_string),
            "hint": format!("{:?}", endpoint.hint),
            "transport_port": endpoint.transport_port,
        })
    });
    json!({
        "authority": &**set.authority(),
        "version": view.version,
        "exists": view.exists,
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}
