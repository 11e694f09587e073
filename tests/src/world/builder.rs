//! Describes a world, and makes its nodes and the network between them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;

use super::{World, programs};
use crate::{
    address::{self, Families},
    ca::Ca,
    cgroup,
    leftovers::Leftovers,
    manifest::Manifests,
    netns::Netns,
    node::{Node, NodeSpec, nodad},
    process::Launch,
};

/// Says how a world is to be.
#[derive(Clone, Debug)]
pub struct WorldBuilder {
    name: String,
    families: Families,
    nodes: Vec<String>,
    controller_args: Vec<String>,
    authority: Option<Arc<Ca>>,
}

impl WorldBuilder {
    /// Two nodes, both address families.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            families: Families::Dual,
            nodes: vec!["n1".to_owned(), "n2".to_owned()],
            controller_args: Vec::new(),
            authority: None,
        }
    }

    /// With these address families.
    #[must_use]
    pub const fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// With these nodes.
    #[must_use]
    pub fn nodes(mut self, names: &[&str]) -> Self {
        self.nodes = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Its controller is started with further arguments.
    #[must_use]
    pub fn controller_args<I: IntoIterator<Item: Into<String>>>(mut self, args: I) -> Self {
        self.controller_args
            .extend(args.into_iter().map(Into::into));
        self
    }

    /// Its controller issues certificates for this authority instead of making its own.
    #[must_use]
    pub fn authority(mut self, authority: &Arc<Ca>) -> Self {
        self.authority = Some(Arc::clone(authority));
        self
    }

    /// Makes the world, after removing what an earlier one of that name left.
    ///
    /// # Errors
    /// When not root, or the kernel refuses.
    pub fn build(self) -> Result<World> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces, cgroups and eBPF need root: run with sudo"
        );
        let prefix = format!("weft-{}", self.name);
        Leftovers::of(&prefix)
            .remove()
            .context("remove leftovers")?;
        let folder = Leftovers::folder(&prefix);
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let mut world = World {
            underlay: Netns::create(&format!("{prefix}-net"))?,
            manifests: Manifests::create(&folder.join("manifests"))?,
            binaries: programs()?,
            prefix,
            folder,
            families: self.families,
            nodes: Vec::new(),
            controller_args: self.controller_args,
            anchors: None,
            controller: Mutex::default(),
            pods: Mutex::default(),
            next_pod: Mutex::default(),
            next_service: Mutex::new(9),
            has_failed: AtomicBool::new(false),
        };
        world.underlay.sysctl("ipv6/conf/default/accept_dad", "0")?;
        world.underlay.ip_batch(&[
            "link add br0 type bridge".to_owned(),
            "link set br0 up".to_owned(),
        ])?;
        if let Some(authority) = &self.authority {
            let args = authority.controller_args(&world.folder.join("authority"))?;
            world.controller_args.extend(args);
            world.anchors = Some(authority.anchor_pem().to_owned());
        }
        for (name, number) in self.nodes.iter().zip(1..) {
            let node = world.make_node(name, number)?;
            world.nodes.push(node);
        }
        world.route()?;
        Ok(world)
    }
}

impl World {
    fn make_node(&self, name: &str, number: u8) -> Result<Node> {
        let node = Node::create(NodeSpec {
            name: name.to_owned(),
            number,
            families: self.families,
            prefix: self.prefix.clone(),
            folder: self.folder.clone(),
            cgroup: cgroup::mount_point()?.join(&self.prefix),
            binaries: self.binaries.clone(),
        })?;
        Launch::new("ip")
            .args(["link", "add", name, "netns", self.underlay.name()])
            .args(["type", "veth", "peer", "name", "eth0"])
            .args(["netns", node.netns().name()])
            .run()?;
        self.underlay.ip_batch(&[
            format!("link set {name} master br0"),
            format!("link set {name} up"),
        ])?;
        let mut lines: Vec<String> = node
            .ips()
            .iter()
            .map(|ip| {
                let length = address::prefix_length(*ip);
                format!("addr add {ip}/{length} dev eth0{}", nodad(*ip))
            })
            .collect();
        lines.push("link set eth0 up".to_owned());
        node.netns().ip_batch(&lines)?;
        Ok(node)
    }

    /// Tells every node where the pods of the others are.
    fn route(&self) -> Result<()> {
        for node in &self.nodes {
            let mut lines = Vec::new();
            for other in self
                .nodes
                .iter()
                .filter(|other| other.name() != node.name())
            {
                let pods = self.families.pod(other.number(), 1);
                lines.extend(
                    pods.iter().zip(other.ips()).map(|(pods, via)| {
                        format!("route add {} via {via}", address::network(*pods))
                    }),
                );
            }
            if !lines.is_empty() {
                node.netns().ip_batch(&lines)?;
            }
        }
        Ok(())
    }
}
