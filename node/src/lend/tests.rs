//! The lending protocol over real sockets, with a lender that makes loopback sockets.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use prost::Message as _;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use socket2::Socket;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weft_api::proto::{
    lend::{self as proto, to_agent, to_node},
    node::Pod,
};

use super::{
    Announced, BoxFuture, Config, Hub, Lender, Server,
    packet::{MAX_BYTES, Packets},
};
use crate::{
    metrics::Metrics,
    pods::{
        enrol::Listener,
        sockets::{Family, Kind, dial, listen},
    },
};

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct FakeLender {
    taken_back: Mutex<Vec<(String, Vec<Kind>)>>,
}

impl Lender for FakeLender {
    fn lend(
        &self,
        uid: &str,
        family: Family,
        count: usize,
    ) -> BoxFuture<'_, Result<Vec<OwnedFd>, String>> {
        let known = uid == "u1";
        Box::pin(async move {
            if !known {
                return Err("pod is not meshed".to_owned());
            }
            let sockets = (0..count).map(|_| dial(family).unwrap().into());
            Ok(sockets.collect())
        })
    }

    fn take_back(&self, uid: &str, listeners: Vec<(Kind, OwnedFd)>) -> BoxFuture<'_, ()> {
        let kinds = listeners.iter().map(|(kind, _)| *kind).collect();
        self.taken_back.lock().push((uid.to_owned(), kinds));
        Box::pin(std::future::ready(()))
    }
}

struct Setup {
    folder: tempfile::TempDir,
    hub: Arc<Hub>,
    lender: Arc<FakeLender>,
    registry: Registry,
    stop: CancellationToken,
    _server: tokio::task::JoinSet<anyhow::Result<()>>,
}

impl Setup {
    fn new() -> Self {
        Self::for_users(vec![rustix::process::geteuid().as_raw()])
    }

    fn for_users(uids: Vec<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::new(folder.path().join("generation")));
        let lender = Arc::new(FakeLender::default());
        let mut registry = Registry::default();
        let path = folder.path().join("node.sock");
        let server = Server::bind(
            Config { path, uids },
            Arc::clone(&hub),
            Arc::clone(&lender) as Arc<dyn Lender>,
            Metrics::register(&mut registry),
        )
        .unwrap();
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(server.serve(stop.clone()));
        Self {
            folder,
            hub,
            lender,
            registry,
            stop,
            _server: tasks,
        }
    }

    fn connect(&self) -> Agent {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let path = self.folder.path().join("node.sock");
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Agent(Packets::new(socket).unwrap())
    }

    async fn greeted(&self, generation: u64) -> Agent {
        let agent = self.connect();
        agent.say(hello(generation, 0)).await;
        let (welcome, _fds) = agent.hear().await;
        assert!(matches!(welcome, to_agent::Message::Welcome(_)));
        agent
    }

    async fn has_counted(&self, line: &str) {
        let counted = async {
            while !weft_runtime::admin::render(&self.registry).contains(line) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, counted).await.expect(line);
    }
}

struct Agent(Packets);

impl Agent {
    async fn say(&self, message: to_node::Message) {
        let message = proto::ToNode {
            message: Some(message),
        };
        self.0.send(&message.encode_to_vec(), &[]).await.unwrap();
    }

    /// The next message, with its descriptors, not acknowledged.
    async fn receive(&self) -> Option<(proto::ToAgent, Vec<OwnedFd>)> {
        let packet = timeout(PATIENCE, self.0.receive())
            .await
            .unwrap()
            .unwrap()?;
        let message = proto::ToAgent::decode(packet.bytes.as_slice()).unwrap();
        Some((message, packet.fds))
    }

    /// The next message, acknowledged.
    async fn hear(&self) -> (to_agent::Message, Vec<OwnedFd>) {
        let (message, fds) = self.receive().await.expect("a message");
        self.ack(message.seq).await;
        (message.message.unwrap(), fds)
    }

    async fn ack(&self, seq: u64) {
        let error = String::new();
        self.say(to_node::Message::Ack(proto::Ack { seq, error }))
            .await;
    }

    async fn is_disconnected(&self) -> bool {
        match timeout(PATIENCE, self.0.receive()).await.expect("in time") {
            Ok(packet) => packet.is_none(),
            Err(_reset) => true,
        }
    }
}

fn hello(generation: u64, holding: u32) -> to_node::Message {
    to_node::Message::Hello(proto::Hello {
        version: 1,
        instance: 7,
        generation,
        draining: false,
        holding,
    })
}

fn wanted(uid: &str, count: u32) -> to_node::Message {
    to_node::Message::SocketsWanted(proto::SocketsWanted {
        uid: uid.to_owned(),
        family: proto::Family::V4.into(),
        count,
    })
}

fn listener(kind: Kind) -> Listener {
    let socket = dial(Family::V4).unwrap();
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&address.into()).unwrap();
    listen(&socket).unwrap();
    let cookie = socket.cookie().unwrap();
    Listener {
        kind,
        socket: Arc::new(socket),
        cookie,
    }
}

fn announced(uid: &str, listeners: Vec<Listener>) -> Announced {
    Announced {
        pod: Pod {
            uid: uid.to_owned(),
            ..Pod::default()
        },
        listeners,
        ips: vec!["10.0.0.1".parse().unwrap()],
    }
}

#[tokio::test]
async fn an_agent_gets_pods_listeners_and_sockets() {
    let setup = Setup::new();
    let listeners = vec![listener(Kind::OutboundV4), listener(Kind::InboundV4)];
    let cookies: Vec<u64> = listeners.iter().map(|l| l.cookie).collect();
    setup.hub.announce(announced("u1", listeners));
    let agent = setup.greeted(0).await;
    let (to_agent::Message::PodAdded(added), fds) = agent.hear().await else {
        panic!("no PodAdded");
    };
    assert_eq!(added.listeners, [1, 3]);
    let got: Vec<u64> = fds
        .into_iter()
        .map(|fd| Socket::from(fd).cookie().unwrap())
        .collect();
    assert_eq!(got, cookies, "the same sockets, in the order named");
    let (snapshot, _fds) = agent.hear().await;
    assert!(matches!(snapshot, to_agent::Message::SnapshotSent(_)));

    for (uid, count, expected) in [("u1", 64, 64), ("u1", 1, 1), ("u2", 3, 0)] {
        agent.say(wanted(uid, count)).await;
        let (to_agent::Message::Sockets(sockets), fds) = agent.hear().await else {
            panic!("no Sockets");
        };
        assert_eq!((sockets.count, fds.len()), (expected, expected as usize));
        assert_eq!(sockets.error.is_empty(), expected > 0);
    }
}

#[tokio::test]
async fn nothing_is_sent_before_the_last_message_was_acknowledged() {
    let setup = Setup::new();
    let agent = setup.greeted(0).await;
    let (snapshot, _fds) = agent.receive().await.unwrap();
    setup.hub.announce(announced("u1", Vec::new()));
    agent.say(wanted("u1", 1)).await;
    let early = timeout(Duration::from_millis(100), agent.receive()).await;
    assert!(early.is_err(), "sent without an Ack");
    agent.ack(snapshot.seq).await;
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let message = agent.hear().await.0;
        let is_pod = matches!(message, to_agent::Message::PodAdded(_));
        assert!(is_pod || matches!(message, to_agent::Message::Sockets(_)));
        kinds.push(is_pod);
    }
    assert_ne!(kinds[0], kinds[1]);
}

#[tokio::test]
async fn who_breaks_the_protocol_is_disconnected_and_counted_and_others_are_unharmed() {
    let setup = Setup::new();
    let good = setup.greeted(0).await;
    good.hear().await;
    let garbage = vec![0xff; 100];
    let long = vec![0; MAX_BYTES + 1];
    for (bytes, reason) in [(&garbage, "garbage"), (&long, "too_much")] {
        let bad = setup.connect();
        bad.0.send(bytes, &[]).await.unwrap();
        assert!(bad.is_disconnected().await, "{reason}");
        let line = format!(r#"weft_lend_errors_total{{reason="{reason}"}} 1"#);
        setup.has_counted(&line).await;
    }
    let nonsense = [
        wanted("u1", 1),
        hello(0, 4097),
        to_node::Message::Hello(proto::Hello::default()),
    ];
    for message in nonsense {
        let bad = setup.connect();
        bad.say(message).await;
        assert!(bad.is_disconnected().await);
    }
    for message in [hello(0, 0), wanted("u1", 65), wanted("u1", 0)] {
        let bad = setup.greeted(0).await;
        bad.hear().await;
        bad.say(message).await;
        assert!(bad.is_disconnected().await);
    }
    good.say(wanted("u1", 2)).await;
    assert_eq!(good.hear().await.1.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_is_disconnected() {
    let setup = Setup::new();
    let silent = setup.connect();
    assert!(silent.is_disconnected_late().await, "no Hello");
    let agent = setup.connect();
    agent.say(hello(0, 0)).await;
    agent.receive_late().await;
    assert!(agent.is_disconnected_late().await, "no Ack");
    assert_eq!(setup.hub.agents(), []);
}

impl Agent {
    /// Like the others, without a limit of its own: time is paused and jumps to the peer's limit.
    async fn is_disconnected_late(&self) -> bool {
        matches!(self.0.receive().await, Ok(None) | Err(_))
    }

    async fn receive_late(&self) {
        self.0.receive().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_newest_serving_agent_accepts_and_the_older_drains() {
    let setup = Setup::new();
    let old = setup.greeted(0).await;
    old.hear().await;
    old.say(to_node::Message::Serving(proto::Serving {})).await;
    let new = setup.greeted(0).await;
    new.hear().await;
    new.say(to_node::Message::Serving(proto::Serving {})).await;
    let (drain, _fds) = old.hear().await;
    assert!(matches!(drain, to_agent::Message::Drain(_)));
    old.say(wanted("u1", 1)).await;
    assert_eq!(
        old.hear().await.1.len(),
        1,
        "an older one still gets sockets"
    );
}

#[tokio::test]
async fn listeners_that_an_agent_holds_are_taken_back_before_it_is_welcome() {
    let setup = Setup::new();
    let agent = setup.connect();
    agent.say(hello(0, 1)).await;
    let held = listener(Kind::InboundV4);
    let holding = proto::ToNode {
        message: Some(to_node::Message::Holding(proto::Holding {
            uid: "u1".to_owned(),
            listeners: vec![proto::Listener::InboundV4.into()],
        })),
    };
    agent
        .0
        .send(&holding.encode_to_vec(), &[held.socket.as_fd()])
        .await
        .unwrap();
    let (welcome, _fds) = agent.hear().await;
    assert!(matches!(welcome, to_agent::Message::Welcome(_)));
    assert_eq!(
        *setup.lender.taken_back.lock(),
        [("u1".to_owned(), vec![Kind::InboundV4])]
    );
}

#[tokio::test]
async fn other_users_may_not_borrow() {
    let setup = Setup::for_users(vec![u32::MAX]);
    let agent = setup.connect();
    assert!(agent.is_disconnected().await);
    setup
        .has_counted(r#"weft_lend_errors_total{reason="refused"} 1"#)
        .await;
    setup.stop.cancel();
}
