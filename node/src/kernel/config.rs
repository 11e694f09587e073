//! What callers tell the kernel side: where things are, and what a pod wants.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
pub use weft_api::model::Guard;
use weft_api::model::PortSet;
pub use weft_common::ListenerSlot;
use weft_common::Settings;

/// Where the kernel side lives on this machine.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Directory on a bpffs that holds our pins, for example `/sys/fs/bpf/weft`. Made if absent;
    /// a bpffs is mounted where none is.
    pub bpffs: PathBuf,
    /// Directory of the cgroup (v2) below which all pods of this node run.
    pub cgroup: PathBuf,
    /// What all programs share: the steering mark.
    pub settings: Settings,
}

/// One pod, as the kernel needs to know it.
#[derive(Clone, Debug)]
pub struct PodKernel<'a> {
    /// Cookie of the pod's network namespace (`SO_NETNS_COOKIE`).
    pub cookie: u64,
    /// Number of the pod's listeners in the listener map; below [`weft_common::MAX_PODS`].
    pub slot: u32,
    /// Unique id; names the pins, so it holds no `/`.
    pub uid: &'a str,
    /// The pod's cgroup: its id (inode number) and its level below the cgroup2 root. With it, the
    /// guard sees what leaves from nested network namespaces.
    pub cgroup: Option<(u64, u32)>,
    /// What the guard does with what evades capture.
    pub guard: Guard,
    /// Port of the pod's own listener for mesh connections; never steered.
    pub inbound_port: u16,
    /// Port of the pod's own admin listener; never steered.
    pub admin_port: u16,
}

/// What is not captured for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skips {
    /// Ports of the pod that peers reach without the proxy.
    pub inbound_ports: PortSet,
    /// Ports that the pod dials without the proxy.
    pub outbound_ports: PortSet,
    /// Networks that are not captured, whichever way the connection goes.
    pub subnets: Vec<IpNet>,
    /// Every address of the pod, on any interface but lo.
    pub own: Vec<IpAddr>,
}
