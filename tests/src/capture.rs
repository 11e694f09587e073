//! Records packets on a device of a namespace with tcpdump.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    eventually::eventually,
    netns::Netns,
    node::Node,
    pcap::Frames,
    pcap::find,
    pod::Pod,
    process::{Launch, Process},
    world::World,
};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    /// From where to where a packet passes the device: the last one says that all are there.
    path: (Netns, SocketAddr),
}

/// Payload of the packet that ends a capture.
const END: &[u8] = b"weft-tests: end of capture";

impl Capture {
    /// Records everything between the nodes: on the underlay's port of the first node.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn between_nodes(world: &World, name: &str) -> Result<Self> {
        let [first, second, ..] = world.nodes() else {
            anyhow::bail!("a world with fewer than two nodes");
        };
        let to = second.ips().first().copied().context("no address")?;
        let path = (first.netns().clone(), to);
        Self::start(world, name, (world.underlay(), first.name()), path)
    }

    /// Records everything that enters or leaves a pod, on its node's end.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn of_pod(world: &World, name: &str, node: &Node, pod: &Pod) -> Result<Self> {
        let path = (node.netns().clone(), pod.ip());
        Self::start(world, name, (node.netns(), pod.host_device()), path)
    }

    fn start(
        world: &World,
        name: &str,
        (netns, device): (&Netns, &str),
        (from, to): (Netns, IpAddr),
    ) -> Result<Self> {
        let folder = world.folder().join("captures");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{name}.pcap"));
        let launch = Launch::new("tcpdump")
            .args(["-i", device, "-U", "-s", "0", "-n", "-B", "16384"])
            // Stays root: the file is in a folder of ours.
            .args(["--immediate-mode", "-Z", "root", "-w"])
            .arg(&file)
            .netns(netns);
        let mut process = launch.spawn(&format!("tcpdump-{name}"), &folder)?;
        process.wait_for("listening on")?;
        Ok(Self {
            process,
            file,
            path: (from, SocketAddr::new(to, 9)),
        })
    }

    /// Ends the capture and reads it.
    ///
    /// # Errors
    /// When packets were lost, or the file cannot be read.
    pub fn stop(mut self) -> Result<Frames> {
        let (from, to) = self.path.clone();
        eventually("end of the capture", || {
            from.enter(|| send_end(to))??;
            let bytes = fs::read(&self.file)?;
            ensure!(find(&bytes, END), "{} bytes captured", bytes.len());
            Ok(())
        })?;
        self.process.terminate(Duration::from_secs(10));
        let log = self.process.log();
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "capture is not whole: {log}"
        );
        let bytes =
            fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        Frames::parse(&bytes)
    }
}

fn send_end(to: SocketAddr) -> Result<()> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.send_to(END, to).context("send the last packet")?;
    Ok(())
}
