//! A pod: a namespace with an address, a cgroup, and the processes in both.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    cgroup,
    netns::Netns,
    process::{Launch, Output, Process},
};

/// What a test says about a pod.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name, also of its namespace and cgroup.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Node it runs on.
    pub node: String,
    /// ServiceAccount; the name of the app if none is said.
    pub service_account: String,
    /// Value of label `app`, by which services select.
    pub app: String,
    /// Ports that its container declares.
    pub ports: Vec<u16>,
    /// Annotations besides `linkerd.io/inject`.
    pub annotations: Vec<(String, String)>,
    /// Whether it is annotated to be meshed.
    pub meshed: bool,
    /// Unique id.
    pub uid: String,
}

/// Kubernetes namespace of pods that name no other.
pub const NAMESPACE: &str = "shop";

impl PodSpec {
    /// A pod that is not meshed.
    pub fn new(name: &str, node: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            node: node.to_owned(),
            service_account: name.to_owned(),
            app: name.to_owned(),
            ports: Vec::new(),
            annotations: Vec::new(),
            meshed: false,
            uid: new_uid(),
        }
    }

    /// To be meshed.
    #[must_use]
    pub const fn meshed(mut self) -> Self {
        self.meshed = true;
        self
    }

    /// Belongs to this app: its label and ServiceAccount.
    #[must_use]
    pub fn app(mut self, app: &str) -> Self {
        app.clone_into(&mut self.app);
        app.clone_into(&mut self.service_account);
        self
    }

    /// Declares a port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// Has an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Its annotations with the one that decides about the mesh.
    pub fn all_annotations(&self) -> Vec<(String, String)> {
        let mode = if self.meshed { "enabled" } else { "disabled" };
        let mut all = self.annotations.clone();
        all.push(("linkerd.io/inject".to_owned(), mode.to_owned()));
        all
    }
}

/// A uid that no other pod of this process has, in the form that Kubernetes uses.
pub fn new_uid() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-0000-4000-8000-{count:012x}", std::process::id())
}

/// Where the parts of a pod are; made by [`crate::World::pod`].
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Netns,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// A folder for its files and logs.
    pub folder: PathBuf,
    /// Its device on the node.
    pub host_device: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The node's end for each of its addresses.
    pub gateways: Vec<IpAddr>,
}

/// A pod of a world. Cheap to clone; goes with its world.
#[derive(Clone, Debug)]
pub struct Pod {
    spec: PodSpec,
    place: Place,
}

impl Pod {
    pub(crate) const fn new(spec: PodSpec, place: Place) -> Self {
        Self { spec, place }
    }

    /// What was asked for.
    pub const fn spec(&self) -> &PodSpec {
        &self.spec
    }

    pub(crate) const fn spec_mut(&mut self) -> &mut PodSpec {
        &mut self.spec
    }

    /// Its network namespace.
    pub const fn netns(&self) -> &Netns {
        &self.place.netns
    }

    /// Its addresses, the primary one first.
    pub fn ips(&self) -> &[IpAddr] {
        &self.place.ips
    }

    /// Its primary address.
    pub fn ip(&self) -> IpAddr {
        self.place.ips[0]
    }

    /// A port at its primary address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// What its certificate says, with the controller's defaults.
    pub fn identity(&self) -> String {
        let PodSpec {
            service_account,
            namespace,
            ..
        } = &self.spec;
        format!("{service_account}.{namespace}.serviceaccount.identity.linkerd.cluster.local")
    }

    /// The node's end for each address.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.place.gateways
    }

    /// Name of its device on the node.
    pub fn host_device(&self) -> &str {
        &self.place.host_device
    }

    /// A folder for its files.
    pub fn folder(&self) -> &Path {
        &self.place.folder
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.place.cgroup
    }

    /// Its cgroup as seen from the root of the hierarchy, as runtimes write it.
    pub fn cgroup_below_mount(&self) -> PathBuf {
        let mount = cgroup::mount_point().unwrap_or_default();
        let below = self.place.cgroup.strip_prefix(&mount);
        Path::new("/").join(below.unwrap_or(&self.place.cgroup))
    }

    /// A command that will run as this pod's process, so that its connections are captured.
    pub fn launch(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        Launch::new(program)
            .netns(&self.place.netns)
            .cgroup(&self.place.cgroup)
    }

    /// Runs a command line in the pod to its end, however it ends. Words are split at spaces.
    ///
    /// # Errors
    /// When it cannot start or takes longer than `limit`.
    pub fn output(&self, line: &str, limit: Duration) -> Result<Output> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command")?;
        self.launch(program).args(words).output(limit)
    }

    /// Runs a command line in the pod and gives what it printed.
    ///
    /// # Errors
    /// When it cannot start, takes too long or fails.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command")?;
        self.launch(program).args(words).run()
    }

    /// Starts a command as a process of the pod, its log beside the pod's files.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn spawn(&self, name: &str, launch: Launch) -> Result<Process> {
        launch.spawn(name, &self.place.folder)
    }
}
