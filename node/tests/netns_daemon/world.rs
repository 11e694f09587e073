//! A pod and its peer as network namespaces, the real daemon and plugin as processes, and an agent
//! that speaks the lending protocol.
//!
//! The test's process moves into a cgroup of its own, so that sockets which it makes inside the
//! pod's namespace are the application's. The daemon starts below it too: its sockets are told
//! apart by their tag. There is no controller: the daemon's cache says what is meshed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::time::{sleep, timeout};
use weft_api::{
    model::{Mesh, Pod, PodUid, Settings},
    proto::lend::{self as proto, to_agent, to_node},
};
use weft_node::{
    cni::plugin::ask_status,
    kernel::{KernelConfig, Settings as KernelSettings, cgroup2_mount, cleanup},
    lend::packet::Packets,
    pods::{
        desired::Desired,
        status::{PodStatus, Standing},
    },
};

use crate::controller::Controller;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// An address that nobody has.
pub(crate) const SERVICE: &str = "10.96.0.10:80";
pub(crate) const POD_IP: &str = "10.212.0.2";
pub(crate) const PEER_IP: &str = "10.212.0.1";
pub(crate) const UID: &str = "wn-web";

/// All tests of the binary move the whole process, so they run one after the other.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Netns(OwnedFd);

impl Netns {
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: a new network namespace for this thread alone shares nothing that Rust's
            // memory model knows of.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
            File::open("/proc/thread-self/ns/net").expect("own namespace")
        });
        Self(made.join().unwrap().into())
    }

    pub(crate) fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let run = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.0.as_fd(), network).expect("setns");
                run()
            });
            run.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.inside(|| run("ip", arguments))
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// A listening socket in the namespace.
    pub(crate) fn serve(&self, addr: &str) -> Socket {
        let addr: SocketAddr = addr.parse().unwrap();
        self.inside(|| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&addr.into()).unwrap();
            socket.listen(64).unwrap();
            socket
        })
    }

    /// Connects from inside the namespace, as an application.
    pub(crate) fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))
    }
}

pub(crate) struct World {
    pub(crate) run_dir: tempfile::TempDir,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
    kernel: KernelConfig,
    daemon: Option<Child>,
    home: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// A pod beside a peer; no daemon runs yet.
    pub(crate) fn new(name: &'static str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: it loads eBPF programs"
        );
        let turn = TURN.lock();
        let mount = cgroup2_mount().expect("cgroup v2");
        let cgroup = mount.join(format!("wn-{name}"));
        fs::create_dir_all(&cgroup).expect("cgroup");
        let home = own_cgroup(&mount);
        move_to(&cgroup);
        let kernel = KernelConfig {
            bpffs: format!("/sys/fs/bpf/wn-{name}").into(),
            cgroup,
            settings: KernelSettings::default(),
        };
        cleanup(&kernel).expect("remove what an earlier run left");
        let (pod, peer) = (Netns::new(), Netns::new());
        pod.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            peer.path().display()
        ));
        for (netns, own) in [(&pod, POD_IP), (&peer, PEER_IP)] {
            netns.ip("link set lo up");
            netns.ip(&format!("addr add {own}/24 dev eth0"));
            let last = own.rsplit('.').next().unwrap();
            netns.ip(&format!("addr add fd00:212::{last}/64 dev eth0 nodad"));
            netns.ip("link set eth0 up");
        }
        pod.ip(&format!("route add default via {PEER_IP}"));
        Self {
            run_dir: tempfile::tempdir().unwrap(),
            pod,
            peer,
            kernel,
            daemon: None,
            home,
            _turn: turn,
        }
    }

    /// What the controller has said before.
    pub(crate) fn wanted(&self, pods: &[Pod]) {
        let desired = Desired::open(self.run_dir.path(), Vec::new());
        desired.replace(pods.to_vec());
        desired.save().unwrap();
    }

    /// Starts the daemon without a controller.
    pub(crate) async fn start(&mut self) {
        let absent = self.run_dir.path().join("absent");
        self.start_with("127.0.0.1:1", &absent, &absent).await;
    }

    /// Starts the daemon with a controller that serves these pods.
    pub(crate) async fn start_controlled(&mut self, pods: &[Pod]) -> Controller {
        let controller = Controller::start(self.run_dir.path(), pods).await;
        let Controller {
            address,
            trust_anchors,
            token_file,
            ..
        } = &controller;
        self.start_with(address, trust_anchors, token_file).await;
        let run_dir = self.run_dir.path();
        eventually("the controller is connected", || {
            ask_status(run_dir).unwrap().controller_connected
        })
        .await;
        controller
    }

    async fn start_with(&mut self, controller: &str, anchors: &Path, token: &Path) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.run_dir.path().join("log"))
            .unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_weft-node"))
            .arg("run")
            .args(["--node-name", "n1", "--controller", controller])
            .arg("--trust-anchors")
            .arg(anchors)
            .arg("--token-file")
            .arg(token)
            .arg("--run-dir")
            .arg(self.run_dir.path())
            .arg("--bpffs")
            .arg(&self.kernel.bpffs)
            .arg("--cgroup")
            .arg(&self.kernel.cgroup)
            .args([
                "--admin-addr",
                "127.0.0.1:0",
                "--log",
                "info,weft_node=debug",
            ])
            .args(["--leave-grace", "1"])
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let run_dir = self.run_dir.path().to_owned();
        eventually("the daemon answers", || ask_status(&run_dir).is_ok()).await;
    }

    /// Kills the daemon as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// Runs `weft-node cleanup`.
    pub(crate) fn clean_up(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_weft-node"))
            .arg("cleanup")
            .arg("--run-dir")
            .arg(self.run_dir.path())
            .arg("--bpffs")
            .arg(&self.kernel.bpffs)
            .arg("--cgroup")
            .arg(&self.kernel.cgroup)
            .output()
            .unwrap()
    }

    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon runs").id()
    }

    pub(crate) fn status(&self, uid: &str) -> Option<PodStatus> {
        let status = ask_status(self.run_dir.path()).unwrap();
        status.pods.into_iter().find(|pod| pod.uid == uid)
    }

    pub(crate) fn is_meshed(&self, uid: &str) -> bool {
        self.status(uid)
            .is_some_and(|pod| pod.standing == Standing::Meshed && pod.reason.is_empty())
    }

    /// Runs the plugin about the pod.
    pub(crate) fn cni(&self, command: &str, uid: &str) -> Output {
        let socket = self.run_dir.path().join("cni.sock");
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "weft-cni", "socket": socket,
            "prevResult": previous_result(),
        });
        let mut plugin = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("container-{uid}"))
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID={uid}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = plugin.stdin.take().unwrap();
        stdin.write_all(config.to_string().as_bytes()).unwrap();
        drop(stdin);
        plugin.wait_with_output().unwrap()
    }

    /// Runs the plugin and demands success.
    pub(crate) fn cni_ok(&self, command: &str, uid: &str) -> String {
        let output = self.cni(command, uid);
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{command}: {stdout}\n{}",
            self.log()
        );
        stdout.trim().to_owned()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.run_dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) async fn agent(&self) -> Agent {
        Agent::connect(&self.run_dir.path().join("node.sock")).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            std::io::stderr().write_all(log.as_bytes()).ok();
        }
        cleanup(&self.kernel).expect("clean up");
        fs::remove_dir(&self.kernel.bpffs).ok();
        move_to(&self.home);
        fs::remove_dir(&self.kernel.cgroup).ok();
    }
}

pub(crate) fn previous_result() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "x"}],
        "ips": [{"address": format!("{POD_IP}/24"), "gateway": PEER_IP, "interface": 0}],
        "dns": {},
    })
}

pub(crate) fn pod(uid: &str, mesh: Mesh) -> Pod {
    Pod {
        uid: PodUid::from(uid),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "web".into(),
        identity: "web.shop.serviceaccount.identity.linkerd.cluster.local"
            .parse()
            .unwrap(),
        ips: Vec::new(),
        mesh,
        settings: Settings::default(),
        owner: ("deployment".into(), "web".into()),
    }
}

/// An agent that does what it is told and keeps what it gets.
pub(crate) struct Agent {
    packets: Packets,
    /// Listeners by pod and kind.
    pub(crate) listeners: BTreeMap<(String, i32), Socket>,
    pub(crate) generation: u64,
}

impl Agent {
    async fn connect(path: &Path) -> Self {
        let mut agent = Self {
            packets: Self::dial(path),
            listeners: BTreeMap::new(),
            generation: 0,
        };
        agent.greet().await;
        agent
    }

    fn dial(path: &Path) -> Packets {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Packets::new(socket).unwrap()
    }

    /// Connects again after the daemon was restarted, offering back what it holds.
    pub(crate) async fn reconnect(&mut self, path: &Path) {
        self.packets = Self::dial(path);
        self.greet().await;
    }

    async fn greet(&mut self) {
        let mut by_pod: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (uid, kind) in self.listeners.keys() {
            by_pod.entry(uid.clone()).or_default().push(*kind);
        }
        let hello = proto::Hello {
            version: 1,
            instance: 1,
            generation: self.generation,
            draining: false,
            holding: u32::try_from(by_pod.len()).unwrap(),
        };
        self.say(to_node::Message::Hello(hello), &[]).await;
        for (uid, listeners) in by_pod {
            let fds: Vec<_> = listeners
                .iter()
                .map(|kind| self.listeners[&(uid.clone(), *kind)].as_fd())
                .collect();
            let holding = proto::Holding {
                uid: uid.clone(),
                listeners: listeners.clone(),
            };
            self.say(to_node::Message::Holding(holding), &fds).await;
        }
        let to_agent::Message::Welcome(welcome) = self.hear().await.0 else {
            panic!("no Welcome");
        };
        self.generation = welcome.generation;
    }

    pub(crate) async fn say(&self, message: to_node::Message, fds: &[std::os::fd::BorrowedFd<'_>]) {
        let message = proto::ToNode {
            message: Some(message),
        };
        self.packets
            .send(&message.encode_to_vec(), fds)
            .await
            .unwrap();
    }

    /// The next message, acknowledged.
    pub(crate) async fn hear(&mut self) -> (to_agent::Message, Vec<OwnedFd>) {
        let packet = timeout(PATIENCE, self.packets.receive())
            .await
            .expect("a message in time")
            .unwrap()
            .expect("an open connection");
        let message = proto::ToAgent::decode(packet.bytes.as_slice()).unwrap();
        let ack = proto::Ack {
            seq: message.seq,
            error: String::new(),
        };
        self.say(to_node::Message::Ack(ack), &[]).await;
        (message.message.unwrap(), packet.fds)
    }

    /// Hears until a pod is added; returns its record. Listeners that it has already stay.
    pub(crate) async fn hear_added(&mut self) -> proto::PodAdded {
        loop {
            let (message, fds) = self.hear().await;
            if let to_agent::Message::PodAdded(added) = message {
                let uid = added.pod.as_ref().unwrap().uid.clone();
                for (kind, fd) in added.listeners.iter().zip(fds) {
                    let socket = Socket::from(fd);
                    let key = (uid.clone(), *kind);
                    let same = self.listeners.get(&key).map(|held| held.cookie().unwrap());
                    if same != Some(socket.cookie().unwrap()) {
                        self.listeners.insert(key, socket);
                    }
                }
                return added;
            }
        }
    }

    pub(crate) async fn hear_removed(&mut self) -> String {
        loop {
            if let (to_agent::Message::PodRemoved(removed), _) = self.hear().await {
                self.listeners.retain(|(uid, _), _| *uid != removed.uid);
                return removed.uid;
            }
        }
    }

    /// Borrows dial sockets.
    pub(crate) async fn borrow(&mut self, uid: &str, count: u32) -> Vec<Socket> {
        let wanted = proto::SocketsWanted {
            uid: uid.to_owned(),
            family: proto::Family::V4.into(),
            count,
        };
        self.say(to_node::Message::SocketsWanted(wanted), &[]).await;
        loop {
            if let (to_agent::Message::Sockets(_), fds) = self.hear().await {
                return fds.into_iter().map(Socket::from).collect();
            }
        }
    }

    /// Accepts on one of a pod's listeners.
    pub(crate) async fn accept(&self, uid: &str, kind: proto::Listener) -> TcpStream {
        let listener = &self.listeners[&(uid.to_owned(), i32::from(kind))];
        eventually("a connection is accepted", || match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false).unwrap();
                Some(TcpStream::from(socket))
            }
            Err(_) => None,
        })
        .await
    }
}

/// What `eventually` waits for.
pub(crate) trait Outcome {
    type Value;
    fn value(self) -> Option<Self::Value>;
}

impl Outcome for bool {
    type Value = ();
    fn value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn value(self) -> Self {
        self
    }
}

/// Waits until something holds.
pub(crate) async fn eventually<O: Outcome>(what: &str, mut holds: impl FnMut() -> O) -> O::Value {
    let wait = async {
        loop {
            if let Some(value) = holds().value() {
                return value;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("not in time: {what}"),
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn own_cgroup(mount: &Path) -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let line = text.lines().find(|line| line.starts_with("0::")).unwrap();
    mount.join(line.trim_start_matches("0::/"))
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("enter the cgroup");
}
