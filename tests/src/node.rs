//! A node: a namespace with a bridge for its pods, its own BPF file system and cgroup subtree, and
//! the two daemons of the mesh as real processes.
//!
//! The node daemon runs as root; the agent runs as nobody without any capability, as it is meant to.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;

use crate::{
    address::{self, Families},
    cgroup,
    eventually::eventually,
    http,
    metrics::Scrape,
    netns::Netns,
    process::{Launch, Process},
};

/// Admin port of the agent, on the node's loopback.
pub const AGENT_ADMIN: u16 = 9990;
/// Admin port of the node daemon, on the node's loopback.
pub const DAEMON_ADMIN: u16 = 9991;
/// User of the agent: nobody.
const AGENT_UID: u32 = 65534;
/// Time an agent gets to finish what is open: longer than its own limit.
const DRAIN: Duration = Duration::from_secs(45);
/// Time a daemon gets to end after it was asked to: longer than the agent's own limit.
const STOP: Duration = Duration::from_secs(40);

/// How a node reaches its controller and proves who it is.
#[derive(Clone, Debug)]
pub struct Join {
    /// The controller.
    pub controller: SocketAddr,
    /// Text of the trust anchors.
    pub anchors: String,
    /// Token of this node.
    pub token: String,
}

/// A node of a world.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    families: Families,
    netns: Netns,
    folder: PathBuf,
    cgroup: PathBuf,
    binaries: PathBuf,
    join: Mutex<Option<Join>>,
    daemon: Mutex<Option<Process>>,
    agent: Mutex<Option<Process>>,
    /// Admin port of the agent that accepts; another one while a second agent takes over.
    agent_admin: Mutex<u16>,
}

/// Where the parts of a node are; made by [`crate::World`].
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Name.
    pub name: String,
    /// Number, from 1: part of its addresses.
    pub number: u8,
    /// Address families.
    pub families: Families,
    /// Prefix of the world.
    pub prefix: String,
    /// Folder of the world.
    pub folder: PathBuf,
    /// Cgroup of the world.
    pub cgroup: PathBuf,
    /// Where the daemons' programs are.
    pub binaries: PathBuf,
}

impl Node {
    /// Makes the namespace, the bridge, the cgroups and the BPF file system of a node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(spec: NodeSpec) -> Result<Self> {
        let netns = Netns::create(&format!("{}-{}", spec.prefix, spec.name))?;
        let node = Self {
            netns,
            folder: spec.folder.join(&spec.name),
            cgroup: spec.cgroup.join(&spec.name),
            name: spec.name,
            number: spec.number,
            families: spec.families,
            binaries: spec.binaries,
            join: Mutex::default(),
            daemon: Mutex::default(),
            agent: Mutex::default(),
            agent_admin: Mutex::new(AGENT_ADMIN),
        };
        for folder in [node.run_dir(), node.bpffs(), node.folder.join("join")] {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Launch::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(node.bpffs())
            .run()?;
        cgroup::create(&node.pods_cgroup())?;
        cgroup::create(&node.daemons_cgroup())?;
        node.make_bridge()?;
        Ok(node)
    }

    fn make_bridge(&self) -> Result<()> {
        self.netns.sysctl("ipv4/ip_forward", "1")?;
        self.netns.sysctl("ipv6/conf/all/forwarding", "1")?;
        self.netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        let mut lines = vec!["link add pods type bridge".to_owned()];
        lines.extend(self.families.pod(self.number, 1).iter().map(|address| {
            let length = address::prefix_length(*address);
            format!("addr add {address}/{length} dev pods{}", nodad(*address))
        }));
        lines.push("link set pods up".to_owned());
        self.netns.ip_batch(&lines)
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number, from 1.
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Network namespace.
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Addresses on the network between the nodes.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.families.node(self.number)
    }

    /// Run directory of its daemons, with their sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Its BPF file system, below which the node daemon pins.
    pub fn bpffs(&self) -> PathBuf {
        self.folder.join("bpf")
    }

    /// Folder of its logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Cgroup below which all its pods are.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("pods")
    }

    /// Cgroup of its daemons.
    pub fn daemons_cgroup(&self) -> PathBuf {
        self.cgroup.join("daemons")
    }

    /// Path of a program of the workspace.
    ///
    /// # Errors
    /// When it was not built.
    pub fn binary(&self, name: &str) -> Result<PathBuf> {
        binary(&self.binaries, name)
    }

    /// Path of a program of the workspace that every user can run: the workspace itself may be in
    /// a folder that only root may enter.
    ///
    /// # Errors
    /// When it was not built, or cannot be linked or copied.
    pub fn public_binary(&self, name: &str) -> Result<PathBuf> {
        let built = self.binary(name)?;
        let folder = self.folder.join("programs");
        fs::create_dir_all(&folder)?;
        let public = folder.join(name);
        if !public.exists() && fs::hard_link(&built, &public).is_err() {
            fs::copy(&built, &public).with_context(|| format!("copy {}", built.display()))?;
        }
        Ok(public)
    }

    /// A command that will run as one of the node's daemons.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn launch(&self, program: &str) -> Result<Launch> {
        Ok(Launch::new(self.binary(program)?)
            .netns(&self.netns)
            .cgroup(&self.daemons_cgroup()))
    }

    /// Tells the node who its controller is. Written where both daemons may read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_join(&self, join: Join) -> Result<()> {
        for (file, text) in [("anchors.pem", &join.anchors), ("token", &join.token)] {
            let path = self.join_file(file);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            // Readable by the agent's user and root.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400))?;
            chown(&path, Some(AGENT_UID), Some(AGENT_UID))?;
        }
        *self.join.lock() = Some(join);
        Ok(())
    }

    /// What [`Node::set_join`] was told last.
    pub fn join(&self) -> Option<Join> {
        self.join.lock().clone()
    }

    fn join_file(&self, file: &str) -> PathBuf {
        self.folder.join("join").join(file)
    }

    fn join_args(&self, launch: Launch) -> Result<Launch> {
        let join = self.join.lock().clone().context("node has no controller")?;
        Ok(launch
            .args(["--node-name", &self.name])
            .args(["--controller", &join.controller.to_string()])
            .arg("--trust-anchors")
            .arg(self.join_file("anchors.pem"))
            .arg("--token-file")
            .arg(self.join_file("token"))
            .arg("--run-dir")
            .arg(self.run_dir()))
    }

    /// Starts the node daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready, with the end of its log.
    pub fn start_daemon(&self) -> Result<()> {
        self.start_daemon_with(&[])
    }

    /// As [`Node::start_daemon`], with further arguments.
    ///
    /// # Errors
    /// As [`Node::start_daemon`].
    pub fn start_daemon_with(&self, args: &[&str]) -> Result<()> {
        let launch = self
            .join_args(self.launch("weft-node")?.arg("run"))?
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--cgroup")
            .arg(self.pods_cgroup())
            .args(["--agent-uid", &AGENT_UID.to_string()])
            .args(["--admin-addr", &format!("127.0.0.1:{DAEMON_ADMIN}")])
            .args(args);
        self.start(&self.daemon, launch, "weft-node", DAEMON_ADMIN)
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready, with the end of its log.
    pub fn start_agent(&self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// As [`Node::start_agent`], with further arguments.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn start_agent_with(&self, args: &[&str]) -> Result<()> {
        let admin = *self.agent_admin.lock();
        let program = Launch::new(self.public_binary("weft-agent")?)
            .netns(&self.netns)
            .cgroup(&self.daemons_cgroup());
        let launch = self
            .join_args(program)?
            .args(["--admin-addr", &format!("127.0.0.1:{admin}")])
            .args(args)
            .user(&AGENT_UID.to_string());
        self.start(&self.agent, launch, "weft-agent", admin)
    }

    /// Starts a second agent beside the first, as an upgrade does, and waits for the first one to
    /// drain and end by itself.
    ///
    /// # Errors
    /// When the second does not become ready, or the first does not end.
    pub fn replace_agent(&self) -> Result<()> {
        let mut first = self.agent.lock().take().context("no agent runs")?;
        {
            let mut admin = self.agent_admin.lock();
            *admin = if *admin == AGENT_ADMIN {
                AGENT_ADMIN + 5
            } else {
                AGENT_ADMIN
            };
        }
        self.start_agent()?;
        let status = first.wait(DRAIN).context("the older agent")?;
        ensure!(status.success(), "the older agent ended: {status}");
        Ok(())
    }

    /// Stops the agent as a supervisor would; whether it ended in time.
    pub fn stop_agent(&self) -> bool {
        let process = self.agent.lock().take();
        process.is_some_and(|mut process| process.terminate(DRAIN))
    }

    fn start(
        &self,
        slot: &Mutex<Option<Process>>,
        launch: Launch,
        name: &str,
        admin: u16,
    ) -> Result<()> {
        let process = launch.spawn(name, &self.logs())?;
        let started = wait_ready(&self.netns, admin, process);
        *slot.lock() = Some(started.with_context(|| format!("{name} on {}", self.name))?);
        Ok(())
    }

    /// Whether the node daemon was started and not stopped.
    pub fn has_daemon(&self) -> bool {
        self.daemon.lock().is_some()
    }

    /// Kills the agent as a crash would.
    pub fn kill_agent(&self) {
        drop(self.agent.lock().take());
    }

    /// Kills the node daemon as a crash would.
    pub fn kill_daemon(&self) {
        drop(self.daemon.lock().take());
    }

    /// Leaves both daemons running when this value goes.
    pub fn abandon(&self) {
        for slot in [&self.agent, &self.daemon] {
            std::mem::forget(slot.lock().take());
        }
    }

    /// Stops both daemons in good order; gives the names of those that had to be killed.
    pub fn stop(&self) -> Vec<String> {
        let mut killed = Vec::new();
        for slot in [&self.agent, &self.daemon] {
            let process = slot.lock().take();
            if let Some(mut process) = process
                && !process.terminate(STOP)
            {
                killed.push(format!("{} on {}", process.name(), self.name));
            }
        }
        killed
    }

    /// Process id of the agent.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.lock().as_ref().map(Process::id)
    }

    /// Process id of the node daemon.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.lock().as_ref().map(Process::id)
    }

    /// Runs what the mesh may have left in the kernel through `weft-node cleanup`.
    ///
    /// # Errors
    /// When it fails.
    pub fn cleanup(&self) -> Result<()> {
        let launch = self.launch("weft-node")?.arg("cleanup");
        launch
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--run-dir")
            .arg(self.run_dir())
            .run()
            .map(drop)
    }

    /// What the agent counts for all pods of the node.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn agent_metrics(&self) -> Result<Scrape> {
        let admin = *self.agent_admin.lock();
        self.scrape(admin)
    }

    /// What the node daemon counts.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn daemon_metrics(&self) -> Result<Scrape> {
        self.scrape(DAEMON_ADMIN)
    }

    fn scrape(&self, port: u16) -> Result<Scrape> {
        let reply = admin_get(&self.netns, port, "/metrics")?;
        ensure!(reply.status == 200, "/metrics: {}", reply.status);
        Scrape::parse(&reply.body)
    }

    /// Ends of the daemons' logs, for people.
    pub fn log_tails(&self, lines: usize) -> String {
        ["weft-node", "weft-agent"]
            .iter()
            .filter_map(|name| {
                let log = fs::read_to_string(self.logs().join(format!("{name}.log"))).ok()?;
                Some(format!(
                    "--- {name} on {}\n{}\n",
                    self.name,
                    tail(&log, lines)
                ))
            })
            .collect()
    }
}

/// Asks an admin server on a namespace's loopback.
///
/// # Errors
/// When it does not answer.
pub fn admin_get(netns: &Netns, port: u16, path: &str) -> Result<http::Reply> {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    netns.enter(|| http::get(address, path))?
}

/// Waits until a daemon's `/ready` says so, or it has ended.
///
/// # Errors
/// When it does not become ready, with the end of its log.
pub fn wait_ready(netns: &Netns, admin: u16, mut process: Process) -> Result<Process> {
    let ready = eventually("ready", || {
        if !process.is_running() {
            return Ok(false);
        }
        let reply = admin_get(netns, admin, "/ready")?;
        ensure!(reply.status == 200, "not ready: {}", reply.body.trim());
        Ok(true)
    });
    match ready {
        Ok(true) => Ok(process),
        Ok(false) => anyhow::bail!("ended at start:\n{}", process.tail(20)),
        Err(error) => Err(error.context(process.tail(20))),
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Path of a program of the workspace.
///
/// # Errors
/// When it was not built.
pub fn binary(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is not built: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}

/// Switches duplicate address detection off, which would delay the first use of an address.
pub const fn nodad(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "",
        IpAddr::V6(_) => " nodad",
    }
}
