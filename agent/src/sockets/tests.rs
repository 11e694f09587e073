//! The client against a weft-node of the test's making, with real sockets passed around.

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use prost::Message as _;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UnixListener},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use weft_api::{
    model::{Mesh, Pod, Settings},
    proto::lend::{self, Listener, to_agent, to_node},
};

use super::{
    testing::stock,
    wire::{MAX_PACKET, Packets},
    *,
};
use crate::tls::testing::soon;

/// weft-node, as far as the agent sees it.
struct Node {
    listener: UnixListener,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

/// An agent's connection to it.
struct Agent {
    packets: Packets,
    seq: u64,
    /// Messages that came while an acknowledgement was waited for.
    heard: VecDeque<(to_node::Message, Vec<OwnedFd>)>,
}

impl Node {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        Self {
            listener: UnixListener::from_std(socket.into()).unwrap(),
            path,
            _folder: folder,
        }
    }

    async fn accept(&self) -> Agent {
        let (stream, _) = soon(self.listener.accept()).await.unwrap();
        let socket: OwnedFd = stream.into_std().unwrap().into();
        Agent {
            packets: Packets::new(socket).unwrap(),
            seq: 0,
            heard: VecDeque::new(),
        }
    }
}

impl Agent {
    async fn hear(&mut self) -> (to_node::Message, Vec<OwnedFd>) {
        match self.heard.pop_front() {
            Some(heard) => heard,
            None => self.receive().await,
        }
    }

    async fn receive(&self) -> (to_node::Message, Vec<OwnedFd>) {
        let mut buffer = vec![0; MAX_PACKET];
        let (length, descriptors) = soon(self.packets.receive(&mut buffer)).await.unwrap();
        let packet = lend::ToNode::decode(&buffer[..length]).unwrap();
        (packet.message.unwrap(), descriptors)
    }

    /// Says something and returns how the agent acknowledges it.
    async fn tell(&mut self, message: to_agent::Message, descriptors: &[BorrowedFd<'_>]) -> String {
        self.seq += 1;
        let packet = lend::ToAgent {
            seq: self.seq,
            message: Some(message),
        };
        let bytes = packet.encode_to_vec();
        soon(self.packets.send(&bytes, descriptors)).await.unwrap();
        loop {
            match self.receive().await {
                (to_node::Message::Ack(ack), _) => {
                    assert_eq!(ack.seq, self.seq);
                    return ack.error;
                }
                other => self.heard.push_back(other),
            }
        }
    }

    async fn welcome(&mut self) -> lend::Hello {
        let (to_node::Message::Hello(hello), _) = self.hear().await else {
            panic!("hello comes first");
        };
        hello
    }

    async fn say_welcome(&mut self, generation: u64) {
        let welcome = lend::Welcome {
            version: 1,
            generation,
        };
        let error = self.tell(to_agent::Message::Welcome(welcome), &[]).await;
        assert_eq!(error, "");
    }

    async fn add(&mut self, pod: &Pod, listeners: &[(Listener, &TcpListener)]) -> String {
        let added = lend::PodAdded {
            pod: Some(pod.into()),
            listeners: listeners.iter().map(|(kind, _)| (*kind).into()).collect(),
            ips: vec!["127.0.0.1".into()],
        };
        let descriptors: Vec<_> = listeners.iter().map(|(_, socket)| socket.as_fd()).collect();
        self.tell(to_agent::Message::PodAdded(added), &descriptors)
            .await
    }

    async fn end_snapshot(&mut self) {
        let sent = to_agent::Message::SnapshotSent(lend::SnapshotSent {});
        assert_eq!(self.tell(sent, &[]).await, "");
    }
}

/// The client, running.
struct Client {
    link: Link,
    events: mpsc::Receiver<Event>,
    _running: JoinSet<anyhow::Result<()>>,
}

impl Client {
    fn start(node: &Node) -> Self {
        let (borrower, link, events) = Borrower::new(&node.path);
        let mut running = JoinSet::new();
        running.spawn(borrower.run(CancellationToken::new()));
        Self {
            link,
            events,
            _running: running,
        }
    }

    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.unwrap()
    }

    async fn added(&mut self) -> (Vec<(ListenerKind, TcpListener)>, Arc<Stock>) {
        let event = self.event().await;
        let Event::PodAdded {
            listeners, stock, ..
        } = event
        else {
            panic!("{event:?}");
        };
        (listeners, stock)
    }
}

fn pod(name: &str) -> Pod {
    Pod {
        uid: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: name.into(),
        identity: format!("{name}.shop").parse().unwrap(),
        ips: vec![],
        mesh: Mesh::Meshed,
        settings: Settings::default(),
        owner: ("".into(), "".into()),
    }
}

fn lent_listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn dial_sockets(count: usize) -> Vec<OwnedFd> {
    let make = |_nth| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
    };
    (0..count).map(make).collect()
}

#[tokio::test]
async fn what_is_lent_accepts_and_dials() {
    let node = Node::start();
    let mut client = Client::start(&node);
    let mut agent = node.accept().await;
    let hello = agent.welcome().await;
    assert_eq!((hello.version, hello.generation, hello.holding), (1, 0, 0));
    agent.say_welcome(7).await;

    let ours = lent_listener();
    assert_eq!(
        agent
            .add(&pod("web"), &[(Listener::InboundV4, &ours)])
            .await,
        ""
    );
    let (listeners, stock) = client.added().await;
    let [(ListenerKind::Inbound(Family::V4), listener)] = &listeners[..] else {
        panic!("{listeners:?}");
    };
    agent.end_snapshot().await;
    assert!(matches!(client.event().await, Event::SnapshotSent));

    // The stock has asked ahead, for the family that the pod has.
    let (to_node::Message::SocketsWanted(wanted), _) = agent.hear().await else {
        panic!("sockets are wanted");
    };
    assert_eq!(wanted.uid, "web");
    assert_eq!((wanted.family(), wanted.count), (lend::Family::V4, 8));
    let sockets = dial_sockets(8);
    let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let message = to_agent::Message::Sockets(lend::Sockets {
        uid: "web".into(),
        family: lend::Family::V4.into(),
        count: 8,
        error: String::new(),
    });
    assert_eq!(agent.tell(message, &sockets).await, "");

    let registered = listeners::register(listener).unwrap();
    let socket = soon(stock.take(Family::V4)).await.unwrap();
    let (dialled, accepted) = soon(async {
        tokio::join!(
            socket.connect(ours.local_addr().unwrap()),
            registered.accept()
        )
    })
    .await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap().0);
    dialled.write_all(b"hi").await.unwrap();
    let mut read = [0; 2];
    soon(accepted.read_exact(&mut read)).await.unwrap();
    assert_eq!(&read, b"hi");
    // Seven are left: below the mark.
    assert!(matches!(
        agent.hear().await.0,
        to_node::Message::SocketsWanted(_)
    ));

    client.link.serving();
    assert!(matches!(agent.hear().await.0, to_node::Message::Serving(_)));
}

#[tokio::test]
async fn a_restart_of_weft_node_changes_nothing_for_pods_that_stay() {
    let node = Node::start();
    let mut client = Client::start(&node);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.say_welcome(3).await;
    let (kept, replaced, lost) = (lent_listener(), lent_listener(), lent_listener());
    for (name, listener) in [("kept", &kept), ("replaced", &replaced), ("lost", &lost)] {
        agent
            .add(&pod(name), &[(Listener::OutboundV4, listener)])
            .await;
    }
    agent.end_snapshot().await;
    let (kept_listeners, kept_stock) = client.added().await;
    let (_, replaced_stock) = client.added().await;
    let (_, lost_stock) = client.added().await;
    assert!(matches!(client.event().await, Event::SnapshotSent));

    drop(agent);
    let mut agent = node.accept().await;
    let hello = agent.welcome().await;
    assert_eq!(
        (hello.generation, hello.holding, hello.draining),
        (3, 3, false)
    );
    let mut offered = Vec::new();
    for _nth in 0..3 {
        let (to_node::Message::Holding(holding), descriptors) = agent.hear().await else {
            panic!("what is held is offered");
        };
        assert_eq!(holding.listeners, [i32::from(Listener::OutboundV4)]);
        let [descriptor] = <[_; 1]>::try_from(descriptors).unwrap();
        offered.push((holding.uid, TcpListener::from(descriptor)));
    }
    let back = &offered.iter().find(|(uid, _)| uid == "kept").unwrap().1;
    assert_eq!(back.local_addr().unwrap(), kept.local_addr().unwrap());

    agent.say_welcome(3).await;
    agent
        .add(&pod("kept"), &[(Listener::OutboundV4, back)])
        .await;
    agent
        .add(
            &pod("replaced"),
            &[(Listener::OutboundV4, &lent_listener())],
        )
        .await;
    agent.end_snapshot().await;

    let Event::PodChanged { pod } = client.event().await else {
        panic!("the same sockets are no news");
    };
    assert_eq!(&*pod.name, "kept");
    let (new_listeners, same_stock) = client.added().await;
    let addr = |listeners: &[(ListenerKind, TcpListener)]| listeners[0].1.local_addr().unwrap();
    assert_ne!(addr(&new_listeners), replaced.local_addr().unwrap());
    assert!(Arc::ptr_eq(&same_stock, &replaced_stock));
    let Event::PodRemoved { uid } = client.event().await else {
        panic!("what is not announced has gone");
    };
    assert_eq!(uid.as_str(), "lost");
    assert!(matches!(client.event().await, Event::SnapshotSent));
    assert_eq!(
        lost_stock.take(Family::V4).await.err(),
        Some(StockError::PodGone)
    );

    // The listener that stayed still accepts, and the stock asks the new weft-node.
    let registered = listeners::register(&kept_listeners[0].1).unwrap();
    let (stream, accepted) = soon(async {
        tokio::join!(
            TcpStream::connect(addr(&kept_listeners)),
            registered.accept()
        )
    })
    .await;
    stream.and(accepted).unwrap();
    assert_eq!(kept_stock.len(Family::V4), 0);
    let (wanted, _) = agent.hear().await;
    assert!(matches!(wanted, to_node::Message::SocketsWanted(_)));
}

#[tokio::test]
async fn a_pod_whose_new_record_cannot_be_used_stays_as_it_was() {
    let node = Node::start();
    let mut client = Client::start(&node);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.say_welcome(1).await;
    agent.add(&pod("web"), &[]).await;
    drop(agent);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.hear().await;
    agent.say_welcome(1).await;
    let mut record = weft_api::proto::node::Pod::from(&pod("web"));
    record.identity = "no identity".into();
    let added = to_agent::Message::PodAdded(lend::PodAdded {
        pod: Some(record),
        listeners: vec![],
        ips: vec![],
    });
    let error = agent.tell(added, &[]).await;
    assert!(error.starts_with("pod shop/web"), "{error}");
    agent.end_snapshot().await;
    client.added().await;
    assert!(matches!(client.event().await, Event::SnapshotSent));
}

#[tokio::test]
async fn who_waits_for_a_socket_is_told_when_there_is_none() {
    let node = Node::start();
    let mut client = Client::start(&node);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.say_welcome(1).await;
    agent.add(&pod("web"), &[]).await;
    let (_, stock) = client.added().await;
    let refusal = to_agent::Message::Sockets(lend::Sockets {
        uid: "web".into(),
        family: lend::Family::V4.into(),
        count: 0,
        error: "too many open files".into(),
    });
    let (taken, _) =
        soon(async { tokio::join!(stock.take(Family::V4), agent.tell(refusal, &[])) }).await;
    assert_eq!(
        taken.err(),
        Some(StockError::Refused("too many open files".into()))
    );
}

#[tokio::test]
async fn a_message_that_makes_no_sense_is_answered_with_the_reason() {
    let node = Node::start();
    let mut client = Client::start(&node);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.say_welcome(1).await;
    let added = lend::PodAdded {
        pod: Some((&pod("web")).into()),
        listeners: vec![Listener::InboundV4.into()],
        ips: vec![],
    };
    let error = agent.tell(to_agent::Message::PodAdded(added), &[]).await;
    assert_eq!(error, "1 listeners were named and 0 came");
    let changed = lend::PodChanged {
        pod: Some((&pod("web")).into()),
    };
    let error = agent
        .tell(to_agent::Message::PodChanged(changed), &[])
        .await;
    assert_eq!(error, "pod shop/web was not announced");
    let error = agent
        .tell(to_agent::Message::Drain(lend::Drain {}), &[])
        .await;
    assert_eq!(error, "");
    assert!(matches!(client.event().await, Event::Drain));
}

#[tokio::test]
async fn a_packet_that_is_too_long_ends_the_connection_and_the_client_comes_back() {
    let node = Node::start();
    let _client = Client::start(&node);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.say_welcome(1).await;
    agent
        .packets
        .send(&vec![0; MAX_PACKET + 1], &[])
        .await
        .unwrap();
    let hello = node.accept().await.welcome().await;
    assert_eq!(hello.generation, 1);
}

#[tokio::test]
async fn one_that_drains_says_so_and_does_not_serve() {
    let node = Node::start();
    let mut client = Client::start(&node);
    let mut agent = node.accept().await;
    agent.welcome().await;
    agent.say_welcome(1).await;
    agent.add(&pod("web"), &[]).await;
    agent
        .tell(to_agent::Message::Drain(lend::Drain {}), &[])
        .await;
    drop(agent);
    let mut agent = node.accept().await;
    assert!(agent.welcome().await.draining);
    assert!(matches!(agent.hear().await.0, to_node::Message::Holding(_)));
    agent.say_welcome(1).await;
    agent.end_snapshot().await;
    client.link.serving();
    let (_, stock) = client.added().await;
    assert!(matches!(client.event().await, Event::Drain));
    assert!(matches!(client.event().await, Event::SnapshotSent));
    // Its pods are still there, though none was announced; and "serving" was not said.
    tokio::select! {
        _ = stock.take(Family::V4) => panic!("nobody has lent a socket"),
        (message, _) = agent.hear() => {
            assert!(matches!(message, to_node::Message::SocketsWanted(_)), "{message:?}");
        }
    }
}

#[tokio::test]
async fn accepted_connections_have_the_listeners_options_and_know_where_they_went() {
    let listener = lent_listener();
    options::set(&listener).unwrap();
    let addr = listener.local_addr().unwrap();
    let registered = listeners::register(&listener).unwrap();
    let (sender, mut accepted) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let mut accepting = JoinSet::new();
    accepting.spawn(listeners::accept(
        registered,
        stop.clone(),
        move |accepted| {
            sender.try_send(accepted).unwrap();
        },
    ));
    let client = TcpStream::connect(addr).await.unwrap();
    let accepted = soon(accepted.recv()).await.unwrap();
    assert_eq!(accepted.client, client.local_addr().unwrap());
    assert_eq!(accepted.original_dst, addr);
    let socket = socket2::SockRef::from(&accepted.stream);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 10);
    assert_eq!(socket.tcp_user_timeout().unwrap().unwrap().as_secs(), 30);
    stop.cancel();
    soon(accepting.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stock_gives_each_socket_once_and_is_filled_again() {
    let stock = stock();
    let mut taken = Vec::new();
    for _nth in 0..200 {
        taken.push(soon(stock.take(Family::V4)).await.unwrap());
    }
    assert!(stock.len(Family::V4) <= 72, "{stock:?}");
    let addr: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let bound = |socket: &TcpSocket| {
        socket.bind(addr).unwrap();
        socket.local_addr().unwrap()
    };
    let addrs: std::collections::HashSet<_> = taken.iter().map(bound).collect();
    assert_eq!(addrs.len(), 200);
}
