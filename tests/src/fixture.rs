//! The smallest meshed world that most suites begin with: a client on one node, a server on the
//! other, a service between them.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    address::Families,
    apps,
    eventually::eventually,
    manifest::ServiceSpec,
    pod::{Pod, PodSpec},
    process::Process,
    world::{World, WorldBuilder},
};

/// Port of the server that says which addresses it sees; not one that is opaque by default.
pub const MIRROR: u16 = 9002;

/// A client on n1 and nginx on n2, both meshed, with service `web` on port 80.
#[derive(Debug)]
pub struct Pair {
    /// The world. Goes last.
    pub world: World,
    /// Meshed pod `client` on n1.
    pub client: Pod,
    /// Meshed pod `web` on n2, with nginx.
    pub server: Pod,
    /// Virtual addresses of service `web`, port 80.
    pub service: Vec<SocketAddr>,
    programs: Vec<Process>,
}

impl Pair {
    /// Builds it with both address families.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn build(test: &str) -> Result<Self> {
        Self::build_in(World::builder(test).families(Families::Dual))
    }

    /// Builds it in a world of this description.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn build_in(builder: WorldBuilder) -> Result<Self> {
        let world = builder.build()?;
        world.start_mesh()?;
        let ips = world.service(&ServiceSpec::new("web", 80, apps::NGINX))?;
        let server = world.pod(PodSpec::new("web", "n2").port(apps::NGINX).meshed())?;
        let client = world.pod(PodSpec::new("client", "n1").meshed())?;
        let pair = Self {
            programs: vec![apps::nginx(&server)?],
            service: ips.iter().map(|ip| SocketAddr::new(*ip, 80)).collect(),
            world,
            client,
            server,
        };
        pair.world.wait_ready(&pair.client)?;
        pair.world.wait_ready(&pair.server)?;
        Ok(pair)
    }

    /// Starts the mirror in the server's pod, behind a service of its own whose addresses it gives.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_mirror(&mut self) -> Result<Vec<SocketAddr>> {
        let spec = ServiceSpec {
            selector: "web".to_owned(),
            ..ServiceSpec::new("mirror", MIRROR, MIRROR)
        };
        let ips = self.world.service(&spec)?;
        self.programs.push(mirror(&self.server)?);
        Ok(ips.iter().map(|ip| SocketAddr::new(*ip, MIRROR)).collect())
    }

    /// The client gets an answer of the server through the service.
    ///
    /// # Errors
    /// When it does not.
    pub fn works(&self) -> Result<()> {
        let url = format!("http://{}/client-id", self.service[0]);
        let (status, body) = apps::curl(&self.client, &url, &["--globoff"])?;
        ensure!(status == 200, "status {status}: {body}");
        ensure!(
            body.trim() == self.client.identity(),
            "server was told that the client is {body:?}"
        );
        Ok(())
    }

    /// As [`Pair::works`], as soon as it does.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn works_soon(&self) -> Result<()> {
        eventually("client reaches server through the mesh", || self.works())
    }

    /// Requests that the server got over mutual TLS from the client.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn requests_over_tls(&self) -> Result<f64> {
        let client = self.client.identity();
        let labels = [
            ("pod", self.server.spec().name.as_str()),
            ("direction", "inbound"),
            ("tls", "true"),
            ("client_id", client.as_str()),
        ];
        let node = self.world.node_of(&self.server)?;
        Ok(node.agent_metrics()?.sum("request_total", &labels))
    }
}

/// Starts the mirror in a pod, on all its address families.
///
/// # Errors
/// When it does not start.
pub fn mirror(pod: &Pod) -> Result<Process> {
    let mut args = vec!["serve".to_owned()];
    for ip in pod.ips() {
        args.push(match ip.is_ipv4() {
            true => format!("0.0.0.0:{MIRROR}"),
            false => format!("[::]:{MIRROR}"),
        });
    }
    apps::own_named(pod, "mirror", "socket-styles", &args)
}

/// Runs socket styles from a pod, all of them or those named, and gives their rows.
///
/// # Errors
/// When the program fails.
pub fn socket_styles(pod: &Pod, target: SocketAddr, styles: &[&str]) -> Result<Vec<Value>> {
    let target = target.to_string();
    let mut args = vec!["connect", target.as_str()];
    args.extend(styles.iter().flat_map(|style| ["--style", style]));
    let output = apps::run_own(pod, "socket-styles", &args)?;
    ensure!(output.status.success(), "{output:?}");
    let lines = output.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When it has ended.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.context("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.trim().parse::<u64>()? * 1024)
}

/// Open descriptors of a process.
///
/// # Errors
/// When it has ended.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
