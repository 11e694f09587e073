//! Both admin servers over sockets.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_api::model::{Mesh, Pod, Settings};
use weft_runtime::ready::Readiness;

use super::*;
use crate::{
    context::PodContext,
    discovery::{
        Discovery, Source, Watched,
        model::{InboundServer, OutboundTarget},
    },
    identity::{
        Handle,
        testing::{certified, uncertified},
    },
    metrics::{NodeMetrics, PodMetrics, PodState, TcpLabels},
    policy::limit::Limits,
    sockets::testing::stock,
    tls::{
        self, ServerId,
        testing::{Ca, soon},
    },
    workload::Workload,
};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const PROMETHEUS: &str = "prometheus.viz.serviceaccount.identity.linkerd.cluster.local";

struct Nobody;

impl Source for Nobody {
    fn outbound(&self, _: &Arc<str>, _: SocketAddr) -> Arc<Watched<OutboundTarget>> {
        Arc::new(Watched::unknown())
    }

    fn inbound(&self, _: &Workload, _: u16) -> Arc<Watched<InboundServer>> {
        Arc::new(Watched::unknown())
    }
}

/// A pod's admin port.
struct World {
    pod: Arc<PodContext>,
    admin: PodAdmin,
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl World {
    async fn new(identity: Handle) -> Self {
        let record = Pod {
            uid: "3f1c".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            service_account: "web".into(),
            identity: WEB.parse().unwrap(),
            ips: vec!["10.1.0.2".parse().unwrap()],
            mesh: Mesh::Meshed,
            settings: Settings {
                container_ports: vec![80, 8080],
                ..Settings::default()
            },
            owner: ("deployment".into(), "web".into()),
        };
        let metrics = Arc::new(PodMetrics::default());
        metrics.tcp(&TcpLabels::InboundDestination).open();
        let pod = Arc::new(PodContext {
            workload: Arc::new(Workload::new(&record, &[])),
            identity,
            stock: stock(),
            metrics: Arc::clone(&metrics),
            discovery: Discovery::new(Arc::new(Nobody)),
            drain: CancellationToken::new(),
            connections: TaskTracker::new(),
            limits: Limits::default(),
        });
        let node = Arc::new(NodeMetrics::default());
        let state = Arc::clone(&pod) as Arc<dyn PodState>;
        node.add_pod(record.uid, metrics, state);
        let admin = PodAdmin::new(Arc::clone(&pod), node);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_pod(admin.clone(), listener, CancellationToken::new()));
        Self {
            pod,
            admin,
            addr,
            _tasks: tasks,
        }
    }

    async fn ask(&self, request: &str) -> (u16, String) {
        exchange(TcpStream::connect(self.addr).await.unwrap(), request).await
    }
}

/// Sends one request and reads status and body.
async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> (u16, String) {
    let request = format!("{request} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    soon(async {
        io.write_all(request.as_bytes()).await.unwrap();
        io.read_to_string(&mut answer).await.unwrap();
    })
    .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test]
async fn a_pod_is_alive_at_once_and_ready_with_its_certificate() {
    let world = World::new(uncertified(WEB)).await;
    assert_eq!(world.ask("GET /live").await, (200, "live\n".to_owned()));
    assert_eq!(
        world.ask("GET /ready").await,
        (503, "not ready\n".to_owned())
    );
    let world = World::new(certified(&Ca::new("ca"), WEB)).await;
    assert_eq!(world.ask("GET /ready").await, (200, "ready\n".to_owned()));
    assert_eq!(world.ask("GET /nothing").await.0, 404);
    assert_eq!(world.ask("POST /metrics").await.0, 405);
}

#[tokio::test]
async fn metrics_are_served_in_plaintext_and_over_mesh_tls() {
    let ca = Ca::new("ca");
    let world = World::new(certified(&ca, WEB)).await;
    let (status, plain) = world.ask("GET /metrics").await;
    assert_eq!(status, 200);
    let open = r#"tcp_open_total{direction="inbound",peer="dst",tls="no_identity",no_tls_reason="loopback"} 1"#;
    assert!(plain.lines().any(|line| line == open), "{plain}");
    assert!(plain.ends_with("# EOF\n"));

    let server = ServerId {
        identity: WEB.parse().unwrap(),
        server_name: WEB.into(),
    };
    let socket = TcpStream::connect(world.addr).await.unwrap();
    let credentials = ca.credentials(PROMETHEUS);
    let connected = tls::client::connect(socket, &credentials, &server, false);
    let (stream, _alpn) = soon(connected).await.unwrap();
    let (status, page) = exchange(stream, "GET /metrics").await;
    assert_eq!(status, 200);
    assert!(page.lines().any(|line| line == open), "{page}");
}

#[tokio::test]
async fn shutdown_drains_the_pod_and_only_when_the_pod_itself_asks() {
    let world = World::new(certified(&Ca::new("ca"), WEB)).await;
    let post = http::Request::post("/shutdown").body(()).unwrap();
    let stranger = "10.1.0.9".parse().unwrap();
    assert_eq!(world.admin.answer(&post, stranger).status(), 403);
    assert_eq!(world.ask("GET /shutdown").await.0, 405);
    assert!(!world.pod.drain.is_cancelled());
    assert_eq!(world.ask("POST /shutdown").await.0, 200);
    assert!(world.pod.drain.is_cancelled());
    assert_eq!(world.ask("GET /ready").await.0, 503);
}

#[tokio::test]
async fn the_environment_is_the_pods_and_not_the_agents() {
    let world = World::new(uncertified(WEB)).await;
    let env = http::Request::get("/env.json").body(()).unwrap();
    let stranger = "10.1.0.2".parse().unwrap();
    assert_eq!(world.admin.answer(&env, stranger).status(), 403);
    let (status, body) = world.ask("GET /env.json").await;
    assert_eq!(status, 200);
    let all: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(all["LINKERD2_PROXY_INBOUND_PORTS"], "80,8080");
    assert_eq!(all.get("PATH"), None);
    let (_, body) = world
        .ask("GET /env.json?LINKERD2_PROXY_INBOUND_IPS&PATH")
        .await;
    let wanted: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(wanted, json!({ "LINKERD2_PROXY_INBOUND_IPS": "10.1.0.2" }));
}

#[tokio::test]
async fn the_nodes_server_shows_metrics_readiness_and_pages() {
    let readiness = Readiness::default();
    let pending = readiness.wait_for();
    let mut pages: BTreeMap<&'static str, Describe> = BTreeMap::new();
    pages.insert("/debug/pods", Box::new(|| json!([{ "pod": "web-1" }])));
    let admin = node_admin(readiness, Arc::default(), pages);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        admin
            .serve_on(listener, CancellationToken::new())
            .await
            .unwrap();
    });
    let ask = async |request| exchange(TcpStream::connect(addr).await.unwrap(), request).await;
    assert_eq!(ask("GET /ready").await.0, 503);
    drop(pending);
    assert_eq!(ask("GET /ready").await.0, 200);
    let (_, page) = ask("GET /metrics").await;
    assert!(page.lines().any(|line| line == "weft_pods 0"), "{page}");
    let (_, page) = ask("GET /debug/pods").await;
    assert_eq!(
        serde_json::from_str::<Value>(&page).unwrap(),
        json!([{ "pod": "web-1" }])
    );
    assert_eq!(ask("POST /debug/pods").await.0, 405);
}
