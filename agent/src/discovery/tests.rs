//! Tables fed by a fake controller over real sockets.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use linkerd2_proxy_api::{
    destination::{
        AddrSet, DestinationProfile, GetDestination, NoEndpoints, ProtocolHint, TlsIdentity,
        Update, WeightedAddr, WeightedAddrSet,
        destination_server::{Destination as DestinationApi, DestinationServer},
        protocol_hint, tls_identity, update,
    },
    inbound as inbound_api,
    inbound::{
        PortSpec, Server,
        inbound_server_policies_server::{InboundServerPolicies, InboundServerPoliciesServer},
    },
    meta,
    outbound::{
        self as outbound_api, OutboundPolicy, TrafficSpec,
        outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_stream::{
    StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Endpoint as Channels};
use weft_api::{
    model::{Mesh, Pod, Settings as PodSettings},
    proto::node::{
        PodsUpdate, TrustBundle, WatchPodsRequest, WatchTrustBundleRequest,
        node_server::{Node, NodeServer},
    },
};

use super::{
    client::tests::{NAME, acceptor},
    model::{Destination, Hint, InboundServer, OutboundTarget, Protocol},
    *,
};
use crate::{
    identity::TokenFile,
    metrics::NodeMetrics,
    tls::testing::{Ca, soon},
};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const AUTHORITY: &str = "web.shop.svc.cluster.local:80";

/// A stream that was opened: what was asked, and where to put answers.
type Opened<Q, A> = (Q, mpsc::Sender<Result<A, Status>>);

/// What the fake answers with.
type Answer<A> = Result<Response<ReceiverStream<Result<A, Status>>>, Status>;

/// One RPC of the fake: tells the test of each stream.
struct Rpc<Q, A>(mpsc::UnboundedSender<Opened<Q, A>>);

/// The test's end of an RPC.
type Calls<Q, A> = mpsc::UnboundedReceiver<Opened<Q, A>>;

impl<Q, A> Rpc<Q, A> {
    fn new() -> (Self, Calls<Q, A>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    fn open(&self, request: Request<Q>) -> Answer<A> {
        let bearer = request.metadata().get("authorization");
        if bearer.is_none_or(|bearer| bearer != "Bearer secret") {
            return Err(Status::unauthenticated("no token"));
        }
        let (sender, receiver) = mpsc::channel(8);
        self.0.send((request.into_inner(), sender)).ok();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct FakeDestination {
    get: Rpc<GetDestination, Update>,
    profile: Rpc<GetDestination, DestinationProfile>,
}
struct FakeOutbound(Rpc<TrafficSpec, OutboundPolicy>);
struct FakeInbound(Rpc<PortSpec, Server>);
struct FakeNode(Rpc<WatchTrustBundleRequest, TrustBundle>);

#[tonic::async_trait]
impl DestinationApi for FakeDestination {
    type GetStream = ReceiverStream<Result<Update, Status>>;
    type GetProfileStream = ReceiverStream<Result<DestinationProfile, Status>>;

    async fn get(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetStream>, Status> {
        self.get.open(request)
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        self.profile.open(request)
    }
}

#[tonic::async_trait]
impl OutboundPolicies for FakeOutbound {
    type WatchStream = ReceiverStream<Result<OutboundPolicy, Status>>;

    async fn get(
        &self,
        _request: Request<TrafficSpec>,
    ) -> Result<Response<OutboundPolicy>, Status> {
        Err(Status::internal("not used"))
    }

    async fn watch(
        &self,
        request: Request<TrafficSpec>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.0.open(request)
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for FakeInbound {
    type WatchPortStream = ReceiverStream<Result<Server, Status>>;

    async fn get_port(&self, _request: Request<PortSpec>) -> Result<Response<Server>, Status> {
        Err(Status::internal("not used"))
    }

    async fn watch_port(
        &self,
        request: Request<PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        self.0.open(request)
    }
}

#[tonic::async_trait]
impl Node for FakeNode {
    type WatchPodsStream = ReceiverStream<Result<PodsUpdate, Status>>;
    type WatchTrustBundleStream = ReceiverStream<Result<TrustBundle, Status>>;

    async fn watch_pods(
        &self,
        _request: Request<WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        Err(Status::internal("not used"))
    }

    async fn watch_trust_bundle(
        &self,
        request: Request<WatchTrustBundleRequest>,
    ) -> Result<Response<Self::WatchTrustBundleStream>, Status> {
        self.0.open(request)
    }
}

/// A controller that says what the test says, and discovery connected to it.
struct World {
    controller: Controller,
    get: Calls<GetDestination, Update>,
    profile: Calls<GetDestination, DestinationProfile>,
    outbound: Calls<TrafficSpec, OutboundPolicy>,
    inbound: Calls<PortSpec, Server>,
    bundle: Mutex<Calls<WatchTrustBundleRequest, TrustBundle>>,
    metrics: Arc<NodeMetrics>,
    _tasks: JoinSet<()>,
    _token: tempfile::NamedTempFile,
}

impl World {
    async fn new() -> Self {
        Self::with(None).await
    }

    /// With a certificate of a CA if there is one, else in plaintext.
    async fn with(ca: Option<&Ca>) -> Self {
        let (get, gets) = Rpc::new();
        let (profile, profiles) = Rpc::new();
        let (outbound, outbounds) = Rpc::new();
        let (inbound, inbounds) = Rpc::new();
        let (bundle, bundles) = Rpc::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let routes = tonic::transport::Server::builder()
            .add_service(DestinationServer::new(FakeDestination { get, profile }))
            .add_service(OutboundPoliciesServer::new(FakeOutbound(outbound)))
            .add_service(InboundServerPoliciesServer::new(FakeInbound(inbound)))
            .add_service(NodeServer::new(FakeNode(bundle)));
        let mut tasks = JoinSet::new();
        let sockets = TcpListenerStream::new(listener);
        let channel = match ca {
            None => {
                tasks.spawn(async move { routes.serve_with_incoming(sockets).await.unwrap() });
                let endpoint = Channels::from_shared(format!("http://{addr}"));
                endpoint.unwrap().connect_lazy()
            }
            Some(ca) => {
                let acceptor = acceptor(ca, NAME);
                let streams = sockets.then(move |socket| {
                    let acceptor = acceptor.clone();
                    async move { acceptor.accept(socket?).await }
                });
                let serve = Box::pin(routes.serve_with_incoming(streams));
                tasks.spawn(async move { serve.await.unwrap() });
                let tls = ControllerTls::new(&ca.pem(), NAME).unwrap();
                channel(&addr.to_string(), tls).unwrap()
            }
        };
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "secret\n").unwrap();
        let metrics = Arc::new(NodeMetrics::default());
        let settings = Settings {
            channel,
            token: TokenFile::new(token.path()),
            node: "n1".into(),
            cluster_networks: Arc::from(["10.0.0.0/8".parse().unwrap()]),
            calls: Arc::default(),
            metrics: metrics.agent.clone(),
        };
        Self {
            controller: Controller::new(settings, CancellationToken::new()),
            get: gets,
            profile: profiles,
            outbound: outbounds,
            inbound: inbounds,
            bundle: Mutex::new(bundles),
            metrics,
            _tasks: tasks,
            _token: token,
        }
    }

    fn outbound(&self, destination: &str) -> Arc<Watched<OutboundTarget>> {
        let destination = destination.parse().unwrap();
        self.controller.outbound(&"shop".into(), destination)
    }

    fn has_metric(&self, line: &str) -> bool {
        self.metrics
            .render_node()
            .lines()
            .any(|found| found == line)
    }
}

/// Waits until a watched value satisfies `is`.
async fn until<T>(watched: &Watched<T>, is: impl Fn(&T) -> bool) -> Arc<T> {
    let mut changes = watched.subscribe();
    soon(async {
        loop {
            changes.borrow_and_update();
            if let Some(value) = watched.load().filter(|value| is(value)) {
                return value;
            }
            changes.changed().await.unwrap();
        }
    })
    .await
}

async fn first<T>(watched: &Watched<T>) -> Arc<T> {
    until(watched, |_| true).await
}

fn weighted(addr: &str) -> WeightedAddr {
    WeightedAddr {
        addr: Some(addr.parse::<SocketAddr>().unwrap().into()),
        weight: 10_000,
        metric_labels: [("pod".to_owned(), "web-1".to_owned())].into(),
        tls_identity: Some(TlsIdentity {
            strategy: Some(tls_identity::Strategy::DnsLikeIdentity(
                tls_identity::DnsLikeIdentity {
                    name: WEB.to_owned(),
                },
            )),
            server_name: None,
        }),
        protocol_hint: Some(ProtocolHint {
            protocol: Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
            opaque_transport: None,
        }),
        ..WeightedAddr::default()
    }
}

fn add(addrs: &[&str]) -> Update {
    Update {
        update: Some(update::Update::Add(WeightedAddrSet {
            addrs: addrs.iter().map(|addr| weighted(addr)).collect(),
            metric_labels: [("namespace".to_owned(), "shop".to_owned())].into(),
        })),
    }
}

fn default_meta(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.to_owned())),
    })
}

/// A policy that sends HTTP to a service.
fn balance(authority: &str) -> OutboundPolicy {
    use outbound_api::{backend, http_route, proxy_protocol};
    let backend = outbound_api::Backend {
        metadata: default_meta("service"),
        queue: None,
        kind: Some(backend::Kind::Balancer(backend::BalanceP2c {
            discovery: Some(backend::EndpointDiscovery {
                kind: Some(backend::endpoint_discovery::Kind::Dst(
                    backend::endpoint_discovery::DestinationGet {
                        path: authority.to_owned(),
                    },
                )),
            }),
            load: None,
        })),
    };
    let first = http_route::distribution::FirstAvailable {
        backends: vec![http_route::RouteBackend {
            backend: Some(backend),
            ..Default::default()
        }],
    };
    let route = outbound_api::HttpRoute {
        metadata: default_meta("http"),
        hosts: vec![],
        rules: vec![http_route::Rule {
            backends: Some(http_route::Distribution {
                kind: Some(http_route::distribution::Kind::FirstAvailable(first)),
            }),
            ..Default::default()
        }],
    };
    OutboundPolicy {
        metadata: default_meta("parent"),
        protocol: Some(outbound_api::ProxyProtocol {
            kind: Some(proxy_protocol::Kind::Detect(proxy_protocol::Detect {
                timeout: None,
                opaque: None,
                http1: Some(proxy_protocol::Http1 {
                    routes: vec![route],
                    failure_accrual: None,
                }),
                http2: None,
            })),
        }),
    }
}

fn profile(name: &str) -> DestinationProfile {
    DestinationProfile {
        fully_qualified_name: name.to_owned(),
        ..DestinationProfile::default()
    }
}

fn endpoints_of(target: &OutboundTarget) -> Arc<model::EndpointSet> {
    let Destination::Balance(set) = &target.destination else {
        panic!("not balanced: {target:?}");
    };
    Arc::clone(set)
}

/// Waits until a set satisfies `is`.
async fn until_endpoints(
    set: &model::EndpointSet,
    is: impl Fn(&model::Endpoints) -> bool,
) -> Arc<model::Endpoints> {
    let mut changes = set.subscribe();
    soon(async {
        loop {
            changes.borrow_and_update();
            let view = Arc::clone(&set.load());
            if is(&view) {
                return view;
            }
            changes.changed().await.unwrap();
        }
    })
    .await
}

fn addrs(view: &model::Endpoints) -> Vec<String> {
    view.list
        .iter()
        .map(|endpoint| endpoint.addr.to_string())
        .collect()
}

#[tokio::test]
async fn a_service_address_becomes_a_set_of_endpoints_shared_by_namespaces() {
    let mut world = World::new().await;
    let target = world.outbound("10.96.0.1:80");
    let (asked, policies) = soon(world.outbound.recv()).await.unwrap();
    assert_eq!(asked.source_workload, r#"{"ns":"shop","pod":"weft-agent"}"#);
    let (asked, profiles) = soon(world.profile.recv()).await.unwrap();
    assert_eq!(asked.path, "10.96.0.1:80");
    assert_eq!(
        asked.context_token,
        r#"{"ns":"shop","nodeName":"n1","pod":"weft-agent"}"#
    );
    profiles
        .send(Ok(profile("web.shop.svc.cluster.local")))
        .await
        .unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    let known = first(&target).await;
    assert_eq!(known.authority.as_deref(), Some(AUTHORITY));
    assert_eq!(known.protocol, Protocol::Detect);

    let (asked, gets) = soon(world.get.recv()).await.unwrap();
    assert_eq!(asked.path, AUTHORITY);
    gets.send(Ok(add(&["10.1.0.2:8080", "10.1.0.3:8080"])))
        .await
        .unwrap();
    let set = endpoints_of(&known);
    let view = until_endpoints(&set, |view| view.list.len() == 2).await;
    let endpoint = Arc::clone(&view.list[0]);
    assert_eq!(endpoint.identity().unwrap().as_str(), WEB);
    assert_eq!((endpoint.hint, endpoint.transport_port), (Hint::H2, None));
    let labels: Vec<_> = endpoint.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(labels, [("dst_namespace", "shop"), ("dst_pod", "web-1")]);

    let remove = AddrSet {
        addrs: vec!["10.1.0.3:8080".parse::<SocketAddr>().unwrap().into()],
    };
    let remove = update::Update::Remove(remove);
    gets.send(Ok(Update {
        update: Some(remove),
    }))
    .await
    .unwrap();
    let view = until_endpoints(&set, |view| view.list.len() == 1).await;
    assert!(
        Arc::ptr_eq(&view.list[0], &endpoint),
        "an endpoint that stays is the same"
    );

    // Another namespace asks anew for policy and profile, and shares the endpoints.
    let other = world
        .controller
        .outbound(&"other".into(), "10.96.0.1:80".parse().unwrap());
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    assert!(Arc::ptr_eq(&endpoints_of(&*first(&other).await), &set));

    let none = update::Update::NoEndpoints(NoEndpoints { exists: true });
    gets.send(Ok(Update { update: Some(none) })).await.unwrap();
    let view = until_endpoints(&set, |view| view.list.is_empty()).await;
    assert_eq!(view.exists, Some(true));
}

#[tokio::test]
async fn the_last_good_view_stays_over_a_broken_stream_until_the_next_one_speaks() {
    let mut world = World::new().await;
    let target = world.outbound("10.96.0.1:80");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    let set = endpoints_of(&*first(&target).await);
    let (_, gets) = soon(world.get.recv()).await.unwrap();
    gets.send(Ok(add(&["10.1.0.2:8080", "10.1.0.3:8080"])))
        .await
        .unwrap();
    let before = until_endpoints(&set, |view| view.list.len() == 2).await;

    gets.send(Err(Status::unavailable("restarting")))
        .await
        .unwrap();
    policies
        .send(Err(Status::unavailable("restarting")))
        .await
        .unwrap();
    let (_, gets) = soon(world.get.recv()).await.unwrap();
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    assert_eq!(addrs(&set.load()), ["10.1.0.2:8080", "10.1.0.3:8080"]);
    // A controller that has just started may not know the service yet.
    policies
        .send(Err(Status::not_found("not yet")))
        .await
        .unwrap();
    assert_eq!(target.version(), 1);

    // The first message of the new stream is the whole truth.
    gets.send(Ok(add(&["10.1.0.3:8080", "10.1.0.4:8080"])))
        .await
        .unwrap();
    let view = until_endpoints(&set, |view| addrs(view).contains(&"10.1.0.4:8080".into())).await;
    assert_eq!(addrs(&view), ["10.1.0.3:8080", "10.1.0.4:8080"]);
    assert!(Arc::ptr_eq(&view.list[0], &before.list[1]));
    let failures = r#"weft_discovery_stream_failures_total{stream="destination"} 1"#;
    assert!(
        world.has_metric(failures),
        "{}",
        world.metrics.render_node()
    );
}

#[tokio::test]
async fn nonsense_is_refused_and_counted_and_changes_nothing() {
    let mut world = World::new().await;
    let target = world.outbound("10.96.0.1:80");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies.send(Ok(OutboundPolicy::default())).await.unwrap();
    policies
        .send(Ok(balance("not an authority")))
        .await
        .unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    let set = endpoints_of(&*first(&target).await);
    assert_eq!(target.version(), 1);
    let refused = r#"weft_discovery_updates_total{stream="outbound_policy",result="refused"} 2"#;
    assert!(world.has_metric(refused), "{}", world.metrics.render_node());

    // A bad endpoint is left out, its neighbours are taken.
    let (_, gets) = soon(world.get.recv()).await.unwrap();
    let mut bad = add(&["10.1.0.2:8080", "10.1.0.3:8080"]);
    if let Some(update::Update::Add(set)) = &mut bad.update {
        set.addrs[0].tls_identity = Some(TlsIdentity::default());
    }
    gets.send(Ok(bad)).await.unwrap();
    let view = until_endpoints(&set, |view| !view.list.is_empty()).await;
    assert_eq!(
        addrs(&view),
        ["10.1.0.3:8080"],
        "never dialled without its identity"
    );
}

#[tokio::test]
async fn a_pod_address_takes_the_endpoint_of_its_profile() {
    let mut world = World::new().await;
    let target = world.outbound("10.1.0.2:8080");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies
        .send(Err(Status::not_found("no service")))
        .await
        .unwrap();
    let (_, profiles) = soon(world.profile.recv()).await.unwrap();
    // Only what the controller has said counts: without a profile nothing is decided yet.
    assert!(target.ready(Duration::from_millis(50)).await.is_none());
    let answer = DestinationProfile {
        endpoint: Some(weighted("10.1.0.2:8080")),
        opaque_protocol: true,
        ..DestinationProfile::default()
    };
    profiles.send(Ok(answer)).await.unwrap();
    let known = first(&target).await;
    assert_eq!(
        (known.protocol, &known.authority),
        (Protocol::Opaque, &None)
    );
    let Destination::Forward(endpoint) = &known.destination else {
        panic!("not forwarded: {known:?}");
    };
    assert_eq!(endpoint.identity().unwrap().as_str(), WEB);
}

#[tokio::test]
async fn an_address_outside_the_cluster_goes_on_as_it_is_once_the_controller_has_said_so() {
    let mut world = World::new().await;
    let target = world.outbound("192.0.2.1:443");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    assert!(target.ready(Duration::from_millis(50)).await.is_none());
    policies
        .send(Err(Status::unimplemented("old controller")))
        .await
        .unwrap();
    let known = first(&target).await;
    let Destination::Forward(endpoint) = &known.destination else {
        panic!("not forwarded: {known:?}");
    };
    assert_eq!(endpoint.addr, "192.0.2.1:443".parse().unwrap());
    assert_eq!(endpoint.tls, None);
    assert!(
        world.profile.try_recv().is_err(),
        "profiles are for the cluster's networks only"
    );
}

#[tokio::test]
async fn a_destination_stays_unknown_while_the_controller_does_not_answer() {
    let mut world = World::new().await;
    let target = world.outbound("10.96.0.1:80");
    for _attempt in 0..2 {
        let (_, policies) = soon(world.outbound.recv()).await.unwrap();
        policies
            .send(Err(Status::unavailable("starting")))
            .await
            .unwrap();
    }
    assert!(target.load().is_none(), "it may be a meshed service");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    first(&target).await;
}

#[tokio::test]
async fn a_watch_ends_when_nobody_holds_its_value() {
    let mut world = World::new().await;
    let target = world.outbound("192.0.2.1:443");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    first(&target).await;
    let (_, gets) = soon(world.get.recv()).await.unwrap();
    world.controller.forget_all();
    drop(target);
    soon(policies.closed()).await;
    soon(gets.closed()).await;
}

fn workload() -> Workload {
    let pod = Pod {
        uid: "3f1c".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        service_account: "web".into(),
        identity: WEB.parse().unwrap(),
        ips: vec!["10.1.0.2".parse().unwrap()],
        mesh: Mesh::Meshed,
        settings: PodSettings {
            default_inbound_policy: "all-authenticated".into(),
            ..PodSettings::default()
        },
        owner: ("deployment".into(), "web".into()),
    };
    Workload::new(&pod, &[])
}

fn server(kind: &str, name: &str) -> Server {
    use inbound_api::{Authn, Authz, Network, authn, proxy_protocol};
    let any = ipnet::IpNet::from(ipnet::Ipv4Net::default());
    Server {
        protocol: Some(inbound_api::ProxyProtocol {
            kind: Some(proxy_protocol::Kind::Opaque(proxy_protocol::Opaque {})),
        }),
        server_ips: vec![],
        authorizations: vec![Authz {
            networks: vec![Network {
                net: Some(any.into()),
                except: vec![],
            }],
            authentication: Some(Authn {
                permit: Some(authn::Permit::Unauthenticated(
                    authn::PermitUnauthenticated {},
                )),
            }),
            labels: Default::default(),
            metadata: default_meta("anyone"),
        }],
        labels: [
            ("group", "policy.linkerd.io"),
            ("kind", kind),
            ("name", name),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
    }
}

fn policy_names(server: &InboundServer) -> Vec<&str> {
    let names = server.authorizations.iter().map(|one| &*one.meta.name);
    std::iter::once(&*server.meta.name).chain(names).collect()
}

#[tokio::test]
async fn a_port_is_held_for_its_policy_then_has_the_pods_default_then_what_is_said() {
    let mut world = World::new().await;
    let server_of_port = world.controller.inbound(&workload(), 8080);
    let (asked, policies) = soon(world.inbound.recv()).await.unwrap();
    assert_eq!(
        (asked.workload.as_str(), asked.port),
        (r#"{"ns":"shop","pod":"web-1"}"#, 8080)
    );
    assert!(server_of_port.load().is_none(), "held");
    let default = first(&server_of_port).await;
    assert_eq!(
        policy_names(&default),
        ["all-authenticated", "all-authenticated", "localhost"]
    );
    policies
        .send(Ok(server("server", "web-http")))
        .await
        .unwrap();
    let known = until(&server_of_port, |server| &*server.meta.kind == "server").await;
    assert_eq!(policy_names(&known), ["web-http", "anyone", "localhost"]);
    assert_eq!(
        (&*known.meta.group, known.meta.port),
        ("policy.linkerd.io", Some(8080))
    );
    policies.send(Ok(Server::default())).await.unwrap();
    policies.send(Ok(server("server", "other"))).await.unwrap();
    until(&server_of_port, |server| &*server.meta.name == "other").await;
    assert_eq!(server_of_port.version(), 3, "nonsense changed nothing");
}

#[tokio::test]
async fn a_bundle_that_cannot_be_used_is_refused_and_the_next_one_taken() {
    let world = World::new().await;
    let (installed, mut bundles) = mpsc::unbounded_channel();
    let install = move |pem: &str| {
        anyhow::ensure!(pem != "bad", "no certificate in it");
        Ok(installed.send(pem.to_owned())?)
    };
    let stop = CancellationToken::new();
    let says = async {
        let mut bundle = world.bundle.lock().await;
        let (_, sender) = soon(bundle.recv()).await.unwrap();
        for pem in ["one", "bad", "two", "two"] {
            sender
                .send(Ok(TrustBundle {
                    pem: pem.to_owned(),
                }))
                .await
                .unwrap();
        }
        for expected in ["one", "two"] {
            assert_eq!(soon(bundles.recv()).await.as_deref(), Some(expected));
        }
        stop.cancel();
    };
    tokio::join!(world.controller.follow_bundle(install, stop.clone()), says);
    assert!(
        bundles.try_recv().is_err(),
        "the same bundle again is nothing new"
    );
}

#[tokio::test]
async fn the_controller_is_asked_over_tls() {
    let mut world = World::with(Some(&Ca::new("ca"))).await;
    let target = world.outbound("192.0.2.1:443");
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    first(&target).await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_opened_again() {
    let mut world = World::new().await;
    let target = world.outbound("192.0.2.1:443");
    let (_, silent) = soon(world.outbound.recv()).await.unwrap();
    let (_, policies) = soon(world.outbound.recv()).await.unwrap();
    soon(silent.closed()).await;
    policies.send(Ok(balance(AUTHORITY))).await.unwrap();
    first(&target).await;
}
