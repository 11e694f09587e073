//! Pods come, change and go as events say, with real listeners and workers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tonic::transport::Endpoint;
use weft_api::model::{Mesh, Settings as PodSettings};

use super::*;
use crate::{
    discovery::{Source, model::OutboundTarget},
    identity::{CaClient, TokenFile},
    sockets::{Borrower, Family, testing::stock},
    tls::testing::soon,
};

/// Notes which ports are asked for.
#[derive(Default)]
struct Asked(Mutex<Vec<u16>>);

impl Source for Asked {
    fn outbound(&self, _: &Arc<str>, _: SocketAddr) -> Arc<Watched<OutboundTarget>> {
        Arc::new(Watched::unknown())
    }

    fn inbound(&self, _: &Workload, port: u16) -> Arc<Watched<InboundServer>> {
        self.0.lock().push(port);
        Arc::new(Watched::unknown())
    }
}

/// Pods that do what the test says.
struct World {
    events: mpsc::Sender<Event>,
    table: Arc<Table>,
    metrics: Arc<NodeMetrics>,
    readiness: Readiness,
    asked: Arc<Asked>,
    drain: CancellationToken,
    drained: CancellationToken,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    _borrower: Borrower,
}

impl World {
    fn new() -> Self {
        let nowhere = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let ca = CaClient::new(nowhere, TokenFile::new("/nonexistent"));
        let (borrower, link, _events) = Borrower::new("/nonexistent");
        let (asked, metrics) = (Arc::<Asked>::default(), Arc::<NodeMetrics>::default());
        let readiness = Readiness::default();
        let pods = Pods::new(Settings {
            workers: Workers::start(NonZeroUsize::MIN).unwrap(),
            store: Store::new(ca, None),
            discovery: Discovery::new(Arc::clone(&asked) as _),
            metrics: Arc::clone(&metrics),
            link,
            readiness: readiness.clone(),
            drain_timeout: Duration::from_millis(100),
        });
        let table = pods.table();
        let (events, received) = mpsc::channel(8);
        let [drain, drained, stop] = [(); 3].map(|()| CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(pods.run(received, drain.clone(), drained.clone(), stop.clone()));
        Self {
            events,
            table,
            metrics,
            readiness,
            asked,
            drain,
            drained,
            stop,
            tasks,
            _borrower: borrower,
        }
    }

    /// Announces a pod; returns where its outbound and its admin port are.
    async fn add(&self, pod: Pod, ip: &str) -> (SocketAddr, SocketAddr) {
        let listen = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let addr = listener.local_addr().unwrap();
            (listener, addr)
        };
        let ((outbound, outbound_addr), (admin, admin_addr)) = (listen(), listen());
        self.tell(Event::PodAdded {
            pod: Box::new(pod),
            ips: vec![ip.parse().unwrap()],
            listeners: vec![
                (ListenerKind::Outbound(Family::V4), outbound),
                (ListenerKind::Admin(Family::V4), admin),
            ],
            stock: stock(),
        })
        .await;
        (outbound_addr, admin_addr)
    }

    async fn tell(&self, event: Event) {
        self.events.send(event).await.unwrap();
    }

    /// Waits until the pods are described in a way that satisfies `is`.
    async fn until(&self, is: impl Fn(&Value) -> bool) {
        soon(async {
            while !is(&self.table.describe()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

fn pod(container_ports: Vec<u16>) -> Pod {
    Pod {
        uid: "3f1c".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        service_account: "web".into(),
        identity: "web.shop.serviceaccount.identity.linkerd.cluster.local"
            .parse()
            .unwrap(),
        ips: vec![],
        mesh: Mesh::Meshed,
        settings: PodSettings {
            container_ports,
            ..PodSettings::default()
        },
        owner: ("job".into(), "web".into()),
    }
}

/// Asks for a page; `None` if nobody answers.
async fn get(addr: SocketAddr, path: &str) -> Option<String> {
    let exchange = async {
        let mut socket = TcpStream::connect(addr).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    soon(exchange).await
}

#[tokio::test]
async fn a_pod_is_served_changed_and_taken_away_as_weft_node_says() {
    let world = World::new();
    assert!(!world.readiness.is_ready());
    let (_, admin) = world.add(pod(vec![80]), "10.1.0.2").await;
    let live = get(admin, "/live").await.unwrap();
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
    let ready = get(admin, "/ready").await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 503"), "no certificate: {ready}");
    assert_eq!(
        *world.asked.0.lock(),
        [80],
        "declared ports are watched from the start"
    );
    let owner = r#"namespace="shop",pod="web-1",k8s_job="web""#;
    assert!(world.metrics.render_node().contains(owner));

    world.tell(Event::SnapshotSent).await;
    let settings = pod(vec![80, 443]);
    world
        .tell(Event::PodChanged {
            pod: Box::new(settings),
        })
        .await;
    soon(async {
        while *world.asked.0.lock() != [80, 80, 443] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(world.readiness.is_ready());

    // The same pod with new listeners, then with another address.
    let (_, second) = world.add(pod(vec![]), "10.1.0.2").await;
    assert!(get(second, "/live").await.is_some());
    let (_, third) = world.add(pod(vec![]), "10.1.0.3").await;
    world.until(|pods| pods[0]["ips"][0] == "10.1.0.3").await;
    assert!(get(third, "/live").await.is_some());

    world.tell(Event::PodRemoved { uid: "3f1c".into() }).await;
    world
        .until(|pods| pods.as_array().is_some_and(Vec::is_empty))
        .await;
    assert!(!world.metrics.render_node().contains("web-1"));
}

#[tokio::test]
async fn draining_accepts_nothing_more_waits_with_a_bound_and_ends_with_the_process() {
    let mut world = World::new();
    let (outbound, _) = world.add(pod(vec![]), "10.1.0.2").await;
    world.tell(Event::SnapshotSent).await;
    world
        .until(|pods| pods.as_array().is_some_and(|pods| !pods.is_empty()))
        .await;
    // A connection that does not finish by itself does not hold the process up for ever.
    let _open = soon(TcpStream::connect(outbound)).await.unwrap();
    world.drain.cancel();
    soon(world.drained.cancelled()).await;
    assert!(!world.readiness.is_ready());
    assert_eq!(world.table.describe()[0]["draining"], true);
    world.stop.cancel();
    soon(world.tasks.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
