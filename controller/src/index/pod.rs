//! Pods: addresses, ports, probes, readiness, owner, and what follows from their annotations.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::core::v1;
use weft_api::model::{self, Identity, Mesh, PodUid, Settings};

use super::{
    Cluster, DefaultPolicy, InboundDefaults, Namespace, NsName, Service, inject, manifest, settings,
};

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: NsName,
    /// Unique id; made from the name if the manifest has none.
    pub uid: PodUid,
    /// The node it was placed on.
    pub node: Option<Arc<str>>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Addresses of its node.
    pub host_ips: Vec<IpAddr>,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// ServiceAccount.
    pub service_account: Arc<str>,
    /// Containers, init containers among them.
    pub containers: Vec<Container>,
    /// What the kubelet asks for.
    pub probes: Vec<Probe>,
    /// Phase of its life.
    pub phase: Phase,
    /// Whether it may be sent traffic.
    pub is_ready: bool,
    /// Whether it was told to stop.
    pub is_terminating: bool,
    /// `spec.hostname`, `spec.subdomain`.
    pub host_name: (Option<String>, Option<String>),
    /// Owner as metric label and name.
    pub owner: (Arc<str>, Arc<str>),
    /// What is wrong with the manifest.
    pub problems: Vec<String>,
    /// What follows from the annotations of pod and namespace.
    pub settled: Settled,
}

/// What follows from the annotations of a pod and of its namespace.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Identity; absent if no name can be made of it.
    pub identity: Option<Identity>,
    /// Whether it is to be meshed.
    pub mesh: Mesh,
    /// How it wants to be treated.
    pub settings: Settings,
    /// Who may connect to it.
    pub inbound: InboundDefaults,
    /// What is wrong with the annotations.
    pub problems: Vec<String>,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Name.
    pub name: String,
    /// TCP ports.
    pub ports: Vec<ContainerPort>,
}

/// A TCP port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name.
    pub name: Option<String>,
    /// Number.
    pub number: u16,
    /// Port of the node's address that leads here.
    pub host_port: Option<u16>,
}

/// An HTTP probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Port it goes to.
    pub port: u16,
    /// Path without its query.
    pub path: String,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By the name of a container's port.
    Name(String),
}

/// Phase of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers have been started.
    Pending,
    /// At least one container runs.
    Running,
    /// All containers have ended, or the node cannot be asked.
    Ended,
    /// The pod's node cannot be asked.
    Unknown,
}

impl Pod {
    /// Reads what the index needs; what cannot be used is left out and reported.
    pub fn read(name: NsName, pod: &v1::Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let mut problems = Vec::new();
        let pod_ips = status.pod_ips.unwrap_or_default();
        let ips = manifest::addresses(
            pod_ips.iter().map(|ip| ip.ip.as_str()),
            status.pod_ip.as_deref(),
            "status.podIPs",
            &mut problems,
        );
        let host_ips = status.host_ips.unwrap_or_default();
        let host_ips = manifest::addresses(
            host_ips.iter().map(|ip| ip.ip.as_str()),
            status.host_ip.as_deref(),
            "status.hostIPs",
            &mut problems,
        );
        let phase = manifest::phase(status.phase.as_deref(), &mut problems);
        let ready = status.conditions.unwrap_or_default();
        let ready = ready.iter().find(|condition| condition.type_ == "Ready");
        let containers = manifest::containers(&spec, &mut problems);
        Self {
            uid: manifest::uid(&name, pod.metadata.uid.as_deref(), &mut problems),
            node: spec
                .node_name
                .filter(|node| !node.is_empty())
                .map(Arc::from),
            ips,
            host_ips,
            host_network: spec.host_network.unwrap_or(false),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            annotations: pod.metadata.annotations.clone().unwrap_or_default(),
            service_account: spec
                .service_account_name
                .or(spec.service_account)
                .filter(|name| !name.is_empty())
                .map_or_else(|| "default".into(), Arc::from),
            probes: manifest::probes(&spec.containers, &spec.init_containers, &mut problems),
            containers,
            phase,
            is_ready: ready.map_or(phase == Phase::Running, |ready| ready.status == "True"),
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
            host_name: (spec.hostname, spec.subdomain),
            owner: manifest::owner(&pod.metadata),
            problems,
            settled: Settled::default(),
            name,
        }
    }

    /// Works out what follows from the annotations of pod and namespace.
    pub(super) fn settle(&mut self, cluster: &Cluster, namespace: Option<&Namespace>) {
        let (settings, inbound, mut problems) = settings::read(self, namespace, cluster);
        problems.extend(inject::wrong_value(&self.annotations));
        let identity = Identity::of_service_account(
            &self.service_account,
            &self.name.namespace,
            &cluster.controller_namespace,
            &cluster.trust_domain,
        );
        if let Err(error) = &identity {
            problems.push(format!("spec.serviceAccountName: {error}"));
        }
        let mut mesh = inject::decide(self, namespace);
        if identity.is_err() && mesh == Mesh::Meshed {
            mesh = Mesh::Skipped("the pod can have no identity".to_owned());
        }
        self.settled = Settled {
            identity: identity.ok(),
            mesh,
            settings,
            inbound,
            problems,
        };
    }

    /// Whether it is to be meshed.
    pub fn is_meshed(&self) -> bool {
        self.settled.mesh == Mesh::Meshed
    }

    /// Whether a proxy of the mesh answers for the pod: this mesh's, or a sidecar.
    pub fn has_proxy(&self, cluster: &Cluster) -> bool {
        let label = self.labels.get("linkerd.io/control-plane-ns");
        self.is_meshed()
            || (label.map(String::as_str) == Some(&cluster.controller_namespace)
                && self
                    .containers
                    .iter()
                    .any(|container| container.name == "linkerd-proxy"))
    }

    /// Whether it has ended for good.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        !self.is_finished()
    }

    /// Whether all the addresses it has are its node's.
    pub const fn host_ips_only(&self) -> bool {
        self.ips.is_empty()
    }

    /// The address that endpoints are made with: one family per pod, IPv4 if it has both.
    pub fn main_ip(&self) -> Option<IpAddr> {
        let v4 = self.ips.iter().find(|ip| ip.is_ipv4());
        v4.or_else(|| self.ips.first()).copied()
    }

    /// Number of a named port.
    pub fn find_port(&self, name: &str) -> Option<u16> {
        let mut ports = self.containers.iter().flat_map(|one| &one.ports);
        let found = ports.find(|port| port.name.as_deref() == Some(name));
        found.map(|port| port.number)
    }

    /// All ports that containers declare, ascending.
    pub fn container_ports(&self) -> Vec<u16> {
        let ports = self.containers.iter().flat_map(|one| &one.ports);
        let mut ports: Vec<u16> = ports.map(|port| port.number).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The pod's name within a headless service.
    pub fn hostname_in(&self, service: &Service) -> Option<&str> {
        let (hostname, subdomain) = &self.host_name;
        hostname
            .as_deref()
            .filter(|_| subdomain.as_deref() == Some(&service.name.name))
    }

    /// Addresses of the node that lead to the pod.
    pub(super) fn host_addrs(&self) -> Vec<SocketAddr> {
        if self.host_network || self.is_finished() {
            return Vec::new();
        }
        let ports = self.containers.iter().flat_map(|one| &one.ports);
        let ports: Vec<u16> = ports.filter_map(|port| port.host_port).collect();
        let pair = |ip: &IpAddr| -> Vec<_> {
            let ports = ports.iter();
            ports.map(|port| SocketAddr::new(*ip, *port)).collect()
        };
        self.host_ips.iter().flat_map(pair).collect()
    }
}

impl Default for Settled {
    fn default() -> Self {
        Self {
            identity: None,
            mesh: Mesh::NotMeshed("not decided".to_owned()),
            settings: Settings::default(),
            inbound: InboundDefaults {
                policy: DefaultPolicy::Deny,
                require_identity: model::PortSet::default(),
            },
            problems: Vec::new(),
        }
    }
}
