//! A world: nodes joined by a network, a controller in the first node, pods on the nodes.
//!
//! ```text
//!  PREFIX-net: bridge br0 ──┬── n1  10.77.0.1 ── bridge pods ── web 10.77.1.2
//!                           └── n2  10.77.0.2 ── bridge pods ── db  10.77.2.2
//! ```
//!
//! Nothing of a world is in the machine's own network namespace. On drop all of it goes; when a
//! test has failed, logs and a line to enter the world are printed before, and with `WEFT_KEEP`
//! set it stays for a look.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;

use crate::{
    address::{self, Families},
    cgroup,
    cni::Call,
    eventually::eventually,
    http,
    leftovers::Leftovers,
    manifest::{self, Manifests, ServiceSpec},
    metrics::Scrape,
    netns::Netns,
    node::{self, Join, Node, nodad},
    pod::{NAMESPACE, Place, Pod, PodSpec},
    process::{Launch, Process},
};

mod builder;

pub use builder::WorldBuilder;

/// Port of the controller on its node's address.
pub const CONTROLLER_PORT: u16 = 8086;
/// Admin port of the controller, on its node's loopback.
pub const CONTROLLER_ADMIN: u16 = 9996;
/// Port of a meshed pod's own admin server.
pub const POD_ADMIN: u16 = 4191;
const STOP: Duration = Duration::from_secs(40);

/// A world. Goes, with everything in it, when dropped.
#[derive(Debug)]
pub struct World {
    prefix: String,
    folder: PathBuf,
    families: Families,
    binaries: PathBuf,
    underlay: Netns,
    nodes: Vec<Node>,
    manifests: Manifests,
    controller_args: Vec<String>,
    /// Given to the controller, if it is not to make its own.
    anchors: Option<String>,
    controller: Mutex<Option<Process>>,
    pods: Mutex<BTreeMap<String, Pod>>,
    next_pod: Mutex<BTreeMap<String, u8>>,
    next_service: Mutex<u8>,
    has_failed: AtomicBool,
}

impl World {
    /// Describes a world with two nodes and both address families, named after a test.
    pub fn builder(test: &str) -> WorldBuilder {
        let mut hasher = DefaultHasher::new();
        test.hash(&mut hasher);
        Self::named(&format!("t-{:08x}", hasher.finish() & 0xffff_ffff))
    }

    /// Describes a world with a name for people.
    pub fn named(name: &str) -> WorldBuilder {
        WorldBuilder::new(name)
    }

    /// A running mesh: two nodes, controller, node daemons and agents, no pods.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn meshed(test: &str) -> Result<Self> {
        let world = Self::builder(test).build()?;
        world.start_mesh()?;
        Ok(world)
    }

    /// What the names of everything in this world begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder of the workspace's programs.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// State folder of its controller.
    pub fn controller_state(&self) -> PathBuf {
        self.folder.join("controller")
    }

    /// The controller's manifests.
    pub const fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The network between the nodes: a bridge whose ports are named after the nodes.
    pub const fn underlay(&self) -> &Netns {
        &self.underlay
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    ///
    /// # Errors
    /// When the world has none of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    /// The node that a pod is on.
    ///
    /// # Errors
    /// When the world has none of that name.
    pub fn node_of(&self, pod: &Pod) -> Result<&Node> {
        self.node(&pod.spec().node)
    }

    /// Pods that were made and not deleted.
    pub fn pods(&self) -> Vec<Pod> {
        self.pods.lock().values().cloned().collect()
    }

    /// Where the controller listens.
    ///
    /// # Errors
    /// Never for a world that was built.
    pub fn controller_address(&self) -> Result<SocketAddr> {
        let first = self.nodes.first().context("a world without nodes")?;
        let ip = first
            .ips()
            .first()
            .copied()
            .context("node without address")?;
        Ok(SocketAddr::new(ip, CONTROLLER_PORT))
    }

    /// Starts the controller, then on each node the daemon and the agent.
    ///
    /// # Errors
    /// When something does not become ready.
    pub fn start_mesh(&self) -> Result<()> {
        self.start_controller()?;
        for node in &self.nodes {
            node.start_daemon()?;
            node.start_agent()?;
        }
        Ok(())
    }

    /// Starts the controller and gives every node its token.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_controller(&self) -> Result<()> {
        let first = self.nodes.first().context("a world without nodes")?;
        let launch = first
            .launch("weft-controller")?
            .args(["run", "--source"])
            .arg(format!("dir:{}", self.manifests.folder().display()))
            .arg("--state")
            .arg(self.controller_state())
            .args(["--listen", &self.controller_address()?.to_string()])
            .args(["--admin-addr", &format!("127.0.0.1:{CONTROLLER_ADMIN}")])
            .args(&self.controller_args);
        let process = launch.spawn("weft-controller", &self.folder.join("logs"))?;
        let process = node::wait_ready(first.netns(), CONTROLLER_ADMIN, process)
            .context("weft-controller")?;
        *self.controller.lock() = Some(process);
        for node in &self.nodes {
            self.join(node)?;
        }
        Ok(())
    }

    fn join(&self, node: &Node) -> Result<()> {
        let state = self.controller_state();
        let token = node
            .launch("weft-controller")?
            .args(["join-token", "--node", node.name(), "--state"])
            .arg(&state)
            .run()?;
        let anchors = state.join("trust-anchors.pem");
        let anchors = match &self.anchors {
            Some(given) => given.clone(),
            None => fs::read_to_string(&anchors)
                .with_context(|| format!("read {}", anchors.display()))?,
        };
        node.set_join(Join {
            controller: self.controller_address()?,
            anchors,
            token: token.trim().to_owned(),
        })
    }

    /// Kills the controller as a crash would.
    pub fn kill_controller(&self) {
        drop(self.controller.lock().take());
    }

    /// Makes a pod and its manifest, and lets the CNI plugin add it when the node has a daemon.
    ///
    /// # Errors
    /// When the kernel refuses or the plugin fails.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.pod_without_cni(spec)?;
        let node = self.node_of(&pod)?;
        if node.has_daemon() {
            Call::of("ADD", &pod).invoke(node, &pod)?;
        }
        Ok(pod)
    }

    /// Makes a pod and its manifest; nobody calls the CNI plugin for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_without_cni(&self, spec: PodSpec) -> Result<Pod> {
        let number = {
            let mut numbers = self.next_pod.lock();
            let next = numbers.entry(spec.node.clone()).or_insert(2);
            let number = *next;
            *next += 1;
            number
        };
        self.pod_with_number(spec, number)
    }

    /// As [`World::pod_without_cni`], with a given last part of its addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_with_number(&self, spec: PodSpec, number: u8) -> Result<Pod> {
        let node = self.node(&spec.node)?;
        let place = Place {
            netns: Netns::create(&format!("{}-{}", self.prefix, spec.name))?,
            cgroup: node.pods_cgroup().join(&spec.name),
            folder: self.folder.join("pods").join(&spec.name),
            host_device: format!("veth{number}"),
            ips: self.families.pod(node.number(), number),
            gateways: self.families.pod(node.number(), 1),
        };
        cgroup::create(&place.cgroup)?;
        fs::create_dir_all(&place.folder)?;
        let pod = Pod::new(spec, place);
        self.wire(node, &pod)
            .with_context(|| format!("network of pod {}", pod.spec().name))?;
        self.describe(&pod)?;
        self.pods
            .lock()
            .insert(pod.spec().name.clone(), pod.clone());
        Ok(pod)
    }

    fn wire(&self, node: &Node, pod: &Pod) -> Result<()> {
        let device = pod.host_device();
        let names = [node.netns().name(), pod.netns().name()];
        Launch::new("ip")
            .args(["link", "add", device, "netns", names[0], "type", "veth"])
            .args([
                "peer",
                "name",
                "eth0",
                "address",
                &hardware_address(pod.ip()),
            ])
            .args(["netns", names[1]])
            .run()?;
        if self.families.has_v6() {
            pod.netns().sysctl("ipv6/conf/eth0/accept_dad", "0")?;
        } else {
            pod.netns().sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        }
        let mut lines = Vec::new();
        for ip in pod.ips() {
            let length = address::prefix_length(*ip);
            lines.push(format!("addr add {ip}/{length} dev eth0{}", nodad(*ip)));
        }
        lines.push("link set eth0 up".to_owned());
        let gateways = pod.gateways().iter();
        lines.extend(gateways.map(|gateway| format!("route add default via {gateway}")));
        node.netns().ip_batch(&[
            format!("link set {device} master pods"),
            format!("link set {device} up"),
        ])?;
        pod.netns().ip_batch(&lines)
    }

    /// Writes a pod's manifest as its spec is now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn describe(&self, pod: &Pod) -> Result<()> {
        let spec = pod.spec();
        let namespace = &spec.namespace;
        self.manifests.write(
            &format!("account-{namespace}-{}", spec.service_account),
            &[manifest::service_account(namespace, &spec.service_account)],
        )?;
        self.manifests.write(
            &format!("namespace-{namespace}"),
            &[manifest::namespace(namespace)],
        )?;
        self.manifests.write(
            &format!("pod-{namespace}-{}", spec.name),
            &[manifest::pod(spec, pod.ips())],
        )
    }

    /// Changes a pod's manifest, as `kubectl annotate` would.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn change(&self, pod: &mut Pod, change: impl FnOnce(&mut PodSpec)) -> Result<()> {
        change(pod.spec_mut());
        self.pods
            .lock()
            .insert(pod.spec().name.clone(), pod.clone());
        self.describe(pod)
    }

    /// Deletes a pod as a kubelet would: processes, CNI DEL, namespace, object.
    ///
    /// # Errors
    /// When the plugin fails or something cannot be removed.
    pub fn delete(&self, pod: &Pod) -> Result<()> {
        cgroup::remove(pod.cgroup())?;
        let node = self.node_of(pod)?;
        if node.has_daemon() {
            Call::of("DEL", pod).invoke(node, pod)?;
        }
        pod.netns().delete()?;
        self.pods.lock().remove(&pod.spec().name);
        self.manifests
            .remove(&format!("pod-{}-{}", pod.spec().namespace, pod.spec().name))
    }

    /// What the mesh serves on a pod's admin port.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn pod_admin(&self, pod: &Pod, path: &str) -> Result<http::Reply> {
        let address = pod.at(POD_ADMIN);
        let node = self.node_of(pod)?;
        node.netns().enter(|| http::get(address, path))?
    }

    /// Waits until a meshed pod has its certificate and is served.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn wait_ready(&self, pod: &Pod) -> Result<()> {
        eventually(&format!("pod {} ready", pod.spec().name), || {
            let reply = self.pod_admin(pod, "/ready")?;
            ensure!(reply.status == 200, "{}", reply.body.trim());
            Ok(())
        })
    }

    /// What the agents of all nodes count.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn metrics(&self) -> Result<Scrape> {
        let mut all = Scrape::default();
        for node in &self.nodes {
            all.samples.extend(node.agent_metrics()?.samples);
        }
        Ok(all)
    }

    /// Makes a Service in [`NAMESPACE`] and gives its virtual addresses.
    ///
    /// # Errors
    /// When its manifest cannot be written.
    pub fn service(&self, spec: &ServiceSpec) -> Result<Vec<IpAddr>> {
        let ips = {
            let mut next = self.next_service.lock();
            *next += 1;
            self.families.service(*next)
        };
        let object = manifest::service(NAMESPACE, spec, &ips);
        self.manifests
            .write(&format!("service-{}", spec.name), &[object])?;
        Ok(ips)
    }

    /// Takes the mesh down in good order: DEL for each pod, then agents, node daemons, controller.
    ///
    /// # Errors
    /// When a pod cannot be deleted or a daemon had to be killed.
    pub fn stop(&self) -> Result<()> {
        for pod in self.pods() {
            self.delete(&pod)?;
        }
        let mut killed: Vec<String> = self.nodes.iter().flat_map(Node::stop).collect();
        let controller = self.controller.lock().take();
        if let Some(mut controller) = controller
            && !controller.terminate(STOP)
        {
            killed.push(controller.name().to_owned());
        }
        ensure!(
            killed.is_empty(),
            "not ended within {STOP:?} of SIGTERM: {}",
            killed.join(", ")
        );
        Ok(())
    }

    /// What a person needs to look into the world.
    pub fn describe_for_people(&self) -> String {
        let mut text = format!("world {} in {}\n", self.prefix, self.folder.display());
        for node in &self.nodes {
            text.push_str(&format!(
                "  {}: {}\n",
                node.name(),
                node.netns().enter_command()
            ));
        }
        for pod in self.pods() {
            text.push_str(&format!(
                "  {} {}: {}\n",
                pod.spec().name,
                pod.ip(),
                pod.netns().enter_command(),
            ));
        }
        text
    }

    /// Lets the world tell on drop what it has to tell, as when a test has panicked in it.
    pub fn mark_failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// Leaves the daemons running.
    fn abandon(&self) {
        for node in &self.nodes {
            node.abandon();
        }
        std::mem::forget(self.controller.lock().take());
    }

    fn report_failure(&self) {
        let mut text = self.describe_for_people();
        let log = self.folder.join("logs/weft-controller.log");
        if let Ok(log) = fs::read_to_string(log) {
            text.push_str(&format!("--- weft-controller\n{}\n", node::tail(&log, 30)));
        }
        for node in &self.nodes {
            text.push_str(&node.log_tails(60));
        }
        #[expect(
            clippy::print_stderr,
            reason = "read by whoever looks at a failed test"
        )]
        {
            eprintln!("{text}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() || self.has_failed.load(Ordering::Relaxed) {
            self.report_failure();
            if std::env::var_os("WEFT_KEEP").is_some() {
                self.abandon();
                return;
            }
        }
        for node in &self.nodes {
            node.kill_agent();
            node.kill_daemon();
        }
        self.kill_controller();
        if let Err(error) = Leftovers::of(&self.prefix).remove() {
            #[expect(clippy::print_stderr, reason = "nobody catches what drop could return")]
            {
                eprintln!("world {} not removed whole: {error:#}", self.prefix);
            }
        }
    }
}

/// A hardware address that follows from the IP address: when an address comes back with another
/// pod, nobody's neighbour table is wrong.
fn hardware_address(ip: IpAddr) -> String {
    let (node, pod) = match ip {
        IpAddr::V4(ip) => (ip.octets()[2], ip.octets()[3]),
        IpAddr::V6(ip) => (ip.octets()[7], ip.octets()[15]),
    };
    format!("02:00:0a:4d:{node:02x}:{pod:02x}")
}

/// Folder of the workspace's programs: where this program is, or the folder above for a test.
///
/// # Errors
/// When this program's own path is unknown.
pub fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe().context("path of this program")?;
    let folder = own.parent().context("program without folder")?;
    Ok(match folder.ends_with("deps") {
        true => folder.parent().unwrap_or(folder).to_owned(),
        false => folder.to_owned(),
    })
}
