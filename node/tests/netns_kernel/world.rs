//! Two network namespaces as pods, a cgroup, and a kernel side of their own.
//!
//! The namespaces have no names: they go when their last file descriptor is closed. The process
//! itself moves into the cgroup, so that all its sockets are seen by the programs; which pod a
//! socket belongs to is told by its namespace, and which are the proxy's by their tag.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use rustix::{
    event::{PollFd, PollFlags, poll},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use weft_node::kernel::{
    Guard, Kernel, KernelConfig, ListenerSlot, PodKernel, Reason, Settings, Skips, cgroup2_mount,
    cleanup,
};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long something that must not happen is waited for.
pub const BRIEFLY: Duration = Duration::from_millis(1500);
/// An address that nobody has.
pub const SERVICE4: &str = "10.96.0.10:80";
pub const SERVICE6: &str = "[fd00:96::10]:80";

pub const CLIENT: Place = Place {
    slot: 1,
    v4: "10.211.0.2",
    v6: "fd00:211::2",
    uid: "wk-client",
};
pub const SERVER: Place = Place {
    slot: 2,
    v4: "10.211.0.3",
    v6: "fd00:211::3",
    uid: "wk-server",
};

/// What is fixed about a pod.
#[derive(Clone, Copy)]
pub struct Place {
    pub slot: u32,
    pub v4: &'static str,
    pub v6: &'static str,
    pub uid: &'static str,
}

/// A pod: a network namespace, and what the kernel side was told about it.
pub struct Pod {
    pub place: Place,
    pub netns: Netns,
    pub cookie: u64,
    listeners: Vec<Socket>,
}

/// A network namespace without a name.
pub struct Netns(OwnedFd);

impl Netns {
    fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: a new network namespace for this thread alone shares nothing that Rust's
            // memory model knows of.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
            File::open("/proc/thread-self/ns/net").expect("own namespace")
        });
        Self(made.join().unwrap().into())
    }

    /// A namespace inside a pod, which forwards for it.
    pub fn nested(pod: &Self, gateway: &str, own: &str) -> Self {
        let nested = Self::new();
        let peer = nested.path();
        pod.ip(&format!(
            "link add inner type veth peer name eth0 netns {peer}"
        ));
        pod.ip(&format!("addr add {gateway}/24 dev inner"));
        pod.ip("link set inner up");
        pod.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .expect("forward");
        nested.ip("link set lo up");
        nested.ip(&format!("addr add {own}/24 dev eth0"));
        nested.ip("link set eth0 up");
        nested.ip(&format!("route add default via {gateway}"));
        nested
    }

    /// Runs something on a thread inside.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let run = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("setns");
                run()
            });
            run.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn ip(&self, arguments: &str) {
        self.inside(|| run("ip", arguments));
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// How other processes' `ip` finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

pub struct World {
    pub config: KernelConfig,
    pub kernel: Kernel,
    pub client: Pod,
    pub server: Pod,
    cgroup: Cgroup,
}

impl World {
    /// Two pods, enrolled, with listeners in their places.
    pub fn new(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: it loads eBPF programs"
        );
        let cgroup = Cgroup::enter(name);
        let config = KernelConfig {
            bpffs: format!("/sys/fs/bpf/wk-{name}").into(),
            cgroup: cgroup.path.clone(),
            settings: Settings::default().with_event_interval_ns(0),
        };
        cleanup(&config).expect("remove what an earlier run left");
        let kernel = Kernel::open(&config).unwrap_or_else(|error| {
            panic!("open: {} ({})", report(&error), error.remedy());
        });
        let (client, server) = (Netns::new(), Netns::new());
        let peer = server.path();
        client.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {peer}"
        ));
        let client = Pod::new(client, CLIENT, SERVER, &kernel);
        let server = Pod::new(server, SERVER, CLIENT, &kernel);
        Self {
            config,
            kernel,
            client,
            server,
            cgroup,
        }
    }

    /// A socket of the proxy in the pod, connected.
    pub fn dial(&self, pod: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = pod
            .netns
            .inside(|| tcp(Domain::for_address(to), Protocol::TCP));
        self.kernel.tag_lent(socket.as_fd()).expect("tag");
        connect(&socket, to)?;
        Ok(socket.into())
    }

    pub fn count(&self, reason: Reason) -> u64 {
        let counters = self.kernel.counters().expect("counters");
        counters
            .iter()
            .find(|(of, _)| *of == reason)
            .expect("reason")
            .1
    }

    /// Id and level of the cgroup in which everything here runs.
    pub fn cgroup(&self) -> (u64, u32) {
        let id = fs::metadata(&self.cgroup.path).expect("cgroup").ino();
        (id, 1)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pod in [&self.client, &self.server] {
            self.kernel.detach(pod.place.uid).expect("detach");
            self.kernel
                .remove_pod(pod.cookie, pod.place.slot)
                .expect("remove");
        }
        cleanup(&self.config).expect("clean up");
        fs::remove_dir(&self.config.bpffs).expect("remove the directory on bpffs");
    }
}

impl Pod {
    fn new(netns: Netns, place: Place, peer: Place, kernel: &Kernel) -> Self {
        let Place { v4, v6, .. } = place;
        netns.ip("link set lo up");
        netns.ip(&format!("addr add {v4}/24 dev eth0"));
        netns.ip(&format!("addr add {v6}/64 dev eth0 nodad"));
        netns.ip("link set eth0 up");
        netns.ip(&format!("route add default via {}", peer.v4));
        netns.ip(&format!("-6 route add default via {}", peer.v6));
        let cookie = netns.inside(|| netns_cookie(&tcp(Domain::IPV4, Protocol::TCP)));
        let mut pod = Self {
            place,
            netns,
            cookie,
            listeners: Vec::new(),
        };
        pod.steer();
        pod.enrol(kernel);
        pod
    }

    /// The rules and routes that turn marked packets back.
    pub fn steer(&self) {
        let mark = Settings::MARK;
        for (family, source) in [("-4", self.place.v4), ("-6", self.place.v6)] {
            let rule = format!("rule add pref 100 fwmark {mark}/{mark} lookup 1033");
            self.netns.ip(&format!("{family} {rule}"));
            let route = format!("route replace local default dev lo src {source} table 1033");
            self.netns.ip(&format!("{family} {route}"));
        }
    }

    pub fn enrol(&mut self, kernel: &Kernel) {
        let Place { slot, uid, .. } = self.place;
        kernel.add_pod(&self.known(Guard::Enforce)).expect("add");
        kernel.set_skips(self.cookie, &self.skips()).expect("skips");
        self.listen(kernel);
        kernel
            .attach_outbound(uid, slot, self.cookie, self.netns.as_fd())
            .expect("outbound");
        let index = self.ifindex();
        self.netns
            .inside(|| kernel.attach_inbound(uid, slot, self.cookie, index))
            .expect("inbound");
        kernel.set_enrolled(self.cookie, true).expect("enrol");
    }

    pub fn known(&self, guard: Guard) -> PodKernel<'static> {
        PodKernel {
            cookie: self.cookie,
            slot: self.place.slot,
            uid: self.place.uid,
            cgroup: None,
            guard,
            inbound_port: 4143,
            admin_port: 4191,
        }
    }

    pub fn skips(&self) -> Skips {
        let own = [self.place.v4, self.place.v6].map(|ip| ip.parse().expect("address"));
        Skips {
            own: own.to_vec(),
            ..Skips::default()
        }
    }

    pub fn ifindex(&self) -> u32 {
        let text = self
            .netns
            .inside(|| fs::read_to_string("/proc/thread-self/net/igmp"));
        let text = text.expect("igmp");
        let line = text
            .lines()
            .find(|line| line.contains("eth0"))
            .expect("eth0");
        line.split_whitespace()
            .next()
            .expect("number")
            .parse()
            .expect("number")
    }

    /// Makes the proxy's listeners and puts them in their places.
    pub fn listen(&mut self, kernel: &Kernel) {
        self.deafen();
        for (which, addr) in [
            (ListenerSlot::Outbound4, "127.0.0.1:4140"),
            (ListenerSlot::Outbound6, "[::1]:4140"),
            (ListenerSlot::Inbound4, "0.0.0.0:4143"),
            (ListenerSlot::Inbound6, "[::]:4143"),
        ] {
            let listener = self.listener(addr, kernel);
            kernel
                .set_listener(self.place.slot, which, listener.as_fd())
                .expect("listener");
            self.listeners.push(listener);
        }
    }

    fn listener(&self, addr: &str, kernel: &Kernel) -> Socket {
        let addr: SocketAddr = addr.parse().expect("address");
        let listener = self.netns.inside(|| {
            let socket = tcp(Domain::for_address(addr), Protocol::TCP);
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            match addr {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
                SocketAddr::V6(_) => transparent6(&socket),
            }
            .expect("transparent");
            if addr.is_ipv6() {
                socket.set_only_v6(true).expect("IPV6_V6ONLY");
            }
            socket.bind(&addr.into()).expect("bind");
            socket
        });
        kernel.tag_lent(listener.as_fd()).expect("tag");
        listener.listen(128).expect("listen");
        listener
    }

    /// Closes the proxy's listeners, as when everything that holds them has died.
    pub fn deafen(&mut self) {
        self.listeners.clear();
    }

    /// The next connection that came to the listener.
    pub fn accept(&self, which: ListenerSlot) -> TcpStream {
        accept(&self.listeners[usize::try_from(which.index(0)).expect("small")])
    }

    /// An application's listener in the pod.
    pub fn serve(&self, addr: &str) -> Socket {
        let addr: SocketAddr = addr.parse().expect("address");
        self.netns.inside(|| {
            let socket = tcp(Domain::for_address(addr), Protocol::TCP);
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            socket.bind(&addr.into()).expect("bind");
            socket.listen(128).expect("listen");
            socket
        })
    }

    /// An application's connection from the pod.
    pub fn connect(&self, to: &str) -> io::Result<TcpStream> {
        self.connect_by(to, Protocol::TCP, PATIENCE)
    }

    pub fn connect_by(
        &self,
        to: &str,
        protocol: Protocol,
        patience: Duration,
    ) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().expect("address");
        let socket = self.netns.inside(|| tcp(Domain::for_address(to), protocol));
        socket.connect_timeout(&to.into(), patience)?;
        patient(socket.into())
    }
}

/// The cgroup in which this process is while it holds this. One test at a time can.
struct Cgroup {
    path: PathBuf,
    home: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Cgroup {
    fn enter(name: &str) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let mount = cgroup2_mount().expect("cgroup v2 is not mounted");
        let text = fs::read_to_string("/proc/self/cgroup").expect("own cgroup");
        let own = text
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .expect("cgroup v2");
        let (path, home) = (mount.join(format!("wk-{name}")), mount.join(own));
        fs::create_dir_all(&path).expect("make a cgroup");
        move_to(&path);
        Self {
            path,
            home,
            _alone: alone,
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        move_to(&self.home);
        fs::remove_dir(&self.path).expect("remove the cgroup");
    }
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("move into the cgroup");
}

/// The error with all its causes.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

pub fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
}

pub fn tcp(domain: Domain, protocol: Protocol) -> Socket {
    Socket::new(domain, Type::STREAM, Some(protocol)).expect("socket")
}

/// `SO_NETNS_COOKIE`.
fn netns_cookie(socket: &Socket) -> u64 {
    let mut cookie = 0_u64;
    let mut length = 8;
    // SAFETY: value and length are ours, and the length is that of the value.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            71,
            value,
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "SO_NETNS_COOKIE: {}", io::Error::last_os_error());
    cookie
}

fn transparent6(socket: &Socket) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: value and length are ours, and the length is that of the value.
    let result = unsafe {
        let value = (&raw const one).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            value,
            4,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect_timeout(&SockAddr::from(to), PATIENCE)
}

/// The next connection at a listener, waited for with patience.
pub fn accept(listener: &Socket) -> TcpStream {
    assert!(is_readable(listener, PATIENCE), "no connection came");
    let (socket, _) = listener.accept().expect("accept");
    patient(socket.into()).expect("timeouts")
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Whether the socket becomes readable in time.
pub fn is_readable(socket: &impl AsFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let timeout = patience.try_into().expect("short");
    poll(&mut fds, Some(&timeout)).expect("poll") > 0
}

/// Ends the socket's connection so that it can connect again.
pub fn disconnect(socket: &Socket) {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC.try_into().expect("0"),
        sa_data: [0; 14],
    };
    // SAFETY: the address is a whole `sockaddr` of that length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, 16) };
    assert_eq!(result, 0, "disconnect: {}", io::Error::last_os_error());
}

/// Waits until something is so.
pub fn eventually(mut is_so: impl FnMut() -> bool) {
    let (_writer, silent) = UnixStream::pair().expect("pair");
    for _ in 0..500 {
        if is_so() {
            return;
        }
        assert!(!is_readable(&silent, Duration::from_millis(10)));
    }
    panic!("it did not come");
}
