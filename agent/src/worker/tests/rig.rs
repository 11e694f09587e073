//! Two pods, applications and clients for the tests.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_api::model::{Mesh, Pod as Record, Settings};

use crate::{
    context::PodContext,
    discovery::{
        Discovery, Source, Watched,
        model::{
            Authentication, Authorization, Destination, Endpoint, Hint, InboundRoute,
            InboundServer, Meta, NetworkMatch, OutboundTarget, Protocol,
        },
    },
    identity::testing::certified,
    inbound::Inbound,
    metrics::{Certificate, NodeMetrics, PodMetrics, PodState},
    outbound::Outbound,
    policy::limit::Limits,
    sockets::{listeners::Accepted, testing::stock},
    tls::{
        ServerId,
        testing::{Ca, soon},
    },
    workload::Workload,
};

pub(super) const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
pub(super) const APP: &str = "app.shop.serviceaccount.identity.linkerd.cluster.local";

/// How the client's side reaches the server's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// No mesh TLS.
    Plain,
    /// Mesh TLS on the application's port.
    Direct,
    /// Mesh TLS on the proxy's port, with a transport header.
    Tagged,
}

/// One pod, on one worker.
pub(super) struct Pod {
    pub(super) context: Arc<PodContext>,
    pub(super) outbound: Arc<Outbound>,
    pub(super) inbound: Arc<Inbound>,
    pub(super) answers: Arc<Answers>,
    tasks: Mutex<JoinSet<()>>,
}

/// Discovery by hand.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) outbound: Mutex<HashMap<SocketAddr, Arc<Watched<OutboundTarget>>>>,
    pub(super) inbound: Mutex<HashMap<u16, Arc<Watched<InboundServer>>>>,
}

impl Source for Answers {
    fn outbound(&self, _: &Arc<str>, destination: SocketAddr) -> Arc<Watched<OutboundTarget>> {
        let mut known = self.outbound.lock();
        let unknown = || Arc::new(Watched::unknown());
        Arc::clone(known.entry(destination).or_insert_with(unknown))
    }

    fn inbound(&self, _: &Workload, port: u16) -> Arc<Watched<InboundServer>> {
        let mut known = self.inbound.lock();
        let unknown = || Arc::new(Watched::unknown());
        Arc::clone(known.entry(port).or_insert_with(unknown))
    }
}

/// Settings of the tests: short limits, and no connection stays long on accident.
pub(super) fn settings() -> Settings {
    Settings {
        detect_timeout: Duration::from_secs(5),
        outbound_connect_timeout: Duration::from_secs(2),
        inbound_connect_timeout: Duration::from_secs(2),
        ..Settings::default()
    }
}

impl Pod {
    pub(super) fn new(ca: &Ca, identity: &str) -> Self {
        Self::with(ca, identity, settings(), Limits::default())
    }

    pub(super) fn with(ca: &Ca, identity: &str, settings: Settings, limits: Limits) -> Self {
        let record = Record {
            uid: identity.into(),
            namespace: "shop".into(),
            name: identity.split('.').next().unwrap().into(),
            service_account: "any".into(),
            identity: identity.parse().unwrap(),
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            mesh: Mesh::Meshed,
            settings,
            owner: ("".into(), "".into()),
        };
        let answers = Arc::new(Answers::default());
        let context = Arc::new(PodContext {
            workload: Arc::new(Workload::new(&record, &[])),
            identity: certified(ca, identity),
            stock: stock(),
            metrics: Arc::new(PodMetrics::new([])),
            discovery: Discovery::new(Arc::clone(&answers) as _),
            drain: CancellationToken::new(),
            connections: TaskTracker::new(),
            limits,
        });
        Self {
            outbound: Arc::new(Outbound::new(Arc::clone(&context), Instant::now())),
            inbound: Arc::new(Inbound::new(Arc::clone(&context))),
            context,
            answers,
            tasks: Mutex::default(),
        }
    }

    /// Captures what is sent to the address returned as if it went to `destination`.
    pub(super) async fn capture(&self, destination: SocketAddr) -> SocketAddr {
        let outbound = Arc::clone(&self.outbound);
        self.listen(Some(destination), move |accepted| {
            Arc::clone(&outbound).serve(accepted)
        })
        .await
    }

    /// Takes what is sent to the address returned as if it came for `target`.
    pub(super) async fn steer(&self, target: SocketAddr) -> SocketAddr {
        let inbound = Arc::clone(&self.inbound);
        let serve = move |accepted| Arc::clone(&inbound).serve(accepted);
        self.listen(Some(target), serve).await
    }

    /// Opens the proxy's own port.
    pub(super) async fn open_proxy_port(&self) -> SocketAddr {
        let inbound = Arc::clone(&self.inbound);
        let serve = move |accepted| Arc::clone(&inbound).serve(accepted);
        let addr = self.listen(None, serve).await;
        let mut settings = (**self.context.workload.settings.load()).clone();
        settings.inbound_port = addr.port();
        self.context.workload.settings.store(Arc::new(settings));
        addr
    }

    async fn listen<F>(
        &self,
        original_dst: Option<SocketAddr>,
        serve: impl Fn(Accepted) -> F + Send + 'static,
    ) -> SocketAddr
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = self.context.connections.clone();
        self.tasks.lock().spawn(async move {
            loop {
                let (stream, client) = listener.accept().await.unwrap();
                let original_dst = original_dst.unwrap_or(stream.local_addr().unwrap());
                drop(connections.spawn(serve(Accepted {
                    stream,
                    client,
                    original_dst,
                })));
            }
        });
        addr
    }

    /// Tells the pod what is behind an original destination.
    pub(super) fn knows(&self, destination: SocketAddr, target: OutboundTarget) {
        let watched = Arc::new(Watched::fixed(target));
        self.answers.outbound.lock().insert(destination, watched);
    }

    /// Tells the pod the policy of a port.
    pub(super) fn allows(&self, port: u16, server: InboundServer) {
        let watched = Arc::new(Watched::fixed(server));
        self.answers.inbound.lock().insert(port, watched);
    }

    /// The pod's metrics page.
    pub(super) fn page(&self) -> String {
        let node = NodeMetrics::default();
        let uid = &self.context.workload.uid;
        let metrics = Arc::clone(&self.context.metrics);
        node.add_pod(uid.clone(), metrics, Arc::new(NoState));
        node.render_pod(uid).unwrap()
    }

    /// Sum of the samples of a series whose line holds all these texts.
    pub(super) fn count(&self, family: &str, labels: &[&str]) -> u64 {
        let begin = format!("{family}{{");
        self.page()
            .lines()
            .filter(|line| line.starts_with(&begin))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

struct NoState;

impl PodState for NoState {
    fn connections_open(&self) -> usize {
        0
    }

    fn certificate(&self) -> Certificate {
        Certificate::default()
    }
}

/// A client's pod, a server's pod, and an application behind it.
pub(super) struct Mesh2 {
    pub(super) web: Pod,
    pub(super) app: Pod,
    /// Where clients connect to.
    pub(super) captured: SocketAddr,
}

impl Mesh2 {
    /// Everything is detected, everybody may come.
    pub(super) async fn new(application: SocketAddr, way: Way, hint: Hint) -> Self {
        Self::with(application, way, hint, Protocol::Detect).await
    }

    pub(super) async fn with(
        application: SocketAddr,
        way: Way,
        hint: Hint,
        protocol: Protocol,
    ) -> Self {
        let ca = Ca::new("root");
        let (web, app) = (Pod::new(&ca, WEB), Pod::new(&ca, APP));
        app.allows(application.port(), server(protocol, vec![anybody()]));
        let endpoint = endpoint(&app, application, way, hint).await;
        let destination = service();
        web.knows(destination, target(protocol, forward(endpoint)));
        let captured = web.capture(destination).await;
        Self { web, app, captured }
    }

    pub(super) async fn connect(&self) -> Raw {
        Raw::connect(self.captured).await
    }
}

/// How `app` is reached.
pub(super) async fn endpoint(app: &Pod, application: SocketAddr, way: Way, hint: Hint) -> Endpoint {
    let server = ServerId {
        identity: APP.parse().unwrap(),
        server_name: APP.into(),
    };
    let reached_at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let plain = Endpoint::plain(reached_at(app.steer(application).await.port()));
    match way {
        Way::Plain => Endpoint { hint, ..plain },
        Way::Direct => Endpoint {
            tls: Some(server),
            hint,
            ..plain
        },
        Way::Tagged => Endpoint {
            addr: reached_at(application.port()),
            tls: Some(server),
            transport_port: Some(app.open_proxy_port().await.port()),
            hint,
            ..plain
        },
    }
}

/// An address that no machine has.
pub(super) fn service() -> SocketAddr {
    "10.96.0.10:80".parse().unwrap()
}

pub(super) fn forward(endpoint: Endpoint) -> Destination {
    Destination::Forward(Arc::new(endpoint))
}

pub(super) fn target(protocol: Protocol, destination: Destination) -> OutboundTarget {
    OutboundTarget {
        protocol,
        detect_timeout: Duration::from_secs(5),
        authority: Some("app.shop.svc.cluster.local:80".into()),
        parent: Meta::default_named("parent"),
        route: Meta::default_named("route"),
        backend: Meta::default_named("backend"),
        destination,
        failfast: Duration::from_millis(200),
    }
}

pub(super) fn anybody() -> Authorization {
    allow("anybody", Authentication::Unauthenticated)
}

pub(super) fn allow(name: &str, authentication: Authentication) -> Authorization {
    let net = |net: &str| NetworkMatch {
        net: net.parse().unwrap(),
        except: Vec::new(),
    };
    Authorization {
        meta: Meta::default_named(name),
        networks: vec![net("0.0.0.0/0"), net("::/0")],
        authentication,
    }
}

pub(super) fn server(protocol: Protocol, authorizations: Vec<Authorization>) -> InboundServer {
    InboundServer {
        protocol,
        detect_timeout: Duration::from_secs(5),
        meta: Meta::default_named("test"),
        authorizations: authorizations.into(),
        routes: Arc::from([InboundRoute {
            meta: Meta::default_named("default"),
            matches: Vec::new(),
            authorizations: Arc::from([]),
        }]),
    }
}

/// An application on a raw socket: what it read, and how many connections it had.
pub(super) struct Application {
    pub(super) addr: SocketAddr,
    pub(super) log: Arc<Mutex<Log>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
pub(super) struct Log {
    pub(super) connections: usize,
    pub(super) heads: Vec<String>,
    pub(super) bodies: Vec<Vec<u8>>,
}

impl Application {
    /// Answers each request with this text; closes after it if `once`.
    pub(super) async fn replying(reply: &'static str, once: bool) -> Self {
        Self::answering("127.0.0.1:0".parse().unwrap(), reply, once).await
    }

    /// Answers each request with this text, there.
    pub(super) async fn replying_at(addr: SocketAddr, reply: &'static str) -> Self {
        Self::answering(addr, reply, false).await
    }

    async fn answering(addr: SocketAddr, reply: &'static str, once: bool) -> Self {
        Self::serving_at(
            addr,
            move |mut peer: Raw, log: Arc<Mutex<Log>>| async move {
                while let Some((head, body)) = peer.request().await {
                    log.lock().heads.push(head);
                    log.lock().bodies.push(body);
                    peer.send(reply).await;
                    if once {
                        break;
                    }
                }
            },
        )
        .await
    }

    pub(super) async fn serving<F>(
        serve: impl Fn(Raw, Arc<Mutex<Log>>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serving_at("127.0.0.1:0".parse().unwrap(), serve).await
    }

    async fn serving_at<F>(
        addr: SocketAddr,
        serve: impl Fn(Raw, Arc<Mutex<Log>>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.lock().connections += 1;
                connections.spawn(serve(Raw::new(stream), Arc::clone(&shared)));
            }
        });
        Self {
            addr,
            log,
            _tasks: tasks,
        }
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.log.lock().heads.clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.log.lock().connections
    }
}

/// One end of a TCP connection, spoken by hand. Every wait is bounded.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(super) async fn connect(addr: SocketAddr) -> Self {
        Self::new(soon(TcpStream::connect(addr)).await.unwrap())
    }

    pub(super) async fn send(&mut self, text: impl AsRef<[u8]>) {
        // The other end may have had enough.
        soon(self.stream.write_all(text.as_ref())).await.ok();
    }

    /// Reads up to and with `end`; what came if the connection ends before that.
    pub(super) async fn until(&mut self, end: &str) -> String {
        loop {
            let found = self
                .read
                .windows(end.len())
                .position(|at| at == end.as_bytes());
            if let Some(at) = found {
                let rest = self.read.split_off(at + end.len());
                return text(std::mem::replace(&mut self.read, rest));
            }
            if !self.more().await {
                return text(std::mem::take(&mut self.read));
            }
        }
    }

    pub(super) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count && self.more().await {}
        let rest = self.read.split_off(count.min(self.read.len()));
        std::mem::replace(&mut self.read, rest)
    }

    pub(super) async fn rest(&mut self) -> String {
        while self.more().await {}
        text(std::mem::take(&mut self.read))
    }

    /// A request with its body; `None` when the connection has ended.
    pub(super) async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.until("\r\n\r\n").await;
        if !head.ends_with("\r\n\r\n") {
            return None;
        }
        let body = match length(&head) {
            Some(length) => self.exactly(length).await,
            None if head.contains("transfer-encoding: chunked") => {
                self.until("\r\n\r\n").await.into_bytes()
            }
            None => Vec::new(),
        };
        Some((head, body))
    }

    /// The head of a response, and a body of known length.
    pub(super) async fn response(&mut self) -> (String, Vec<u8>) {
        let head = self.until("\r\n\r\n").await;
        let body = match length(&head) {
            Some(length) => self.exactly(length).await,
            None => Vec::new(),
        };
        (head, body)
    }

    async fn more(&mut self) -> bool {
        matches!(soon(self.stream.read_buf(&mut self.read)).await, Ok(count) if count > 0)
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("test traffic is text")
}

fn length(head: &str) -> Option<usize> {
    let line = head
        .lines()
        .find(|line| line.starts_with("content-length: "))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Waits until something becomes true.
pub(super) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits until a sender stands still: socket buffers and those of the proxies are full.
pub(super) async fn stands_still(sent: impl Fn() -> usize) {
    let mut before = 0;
    let mut quiet = 0;
    while quiet < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        quiet = if sent() == before { quiet + 1 } else { 0 };
        before = sent();
        assert!(before < 64 << 20, "nothing holds the sender back");
    }
}
