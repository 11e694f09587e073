//! Everything known about the cluster, as plain structs.
//!
//! [`Index::apply`] and [`Index::delete`] take what a source has read; the rest are questions of
//! `translate`. Endpoints of services are kept as sets of pod names per service, so that a change
//! of one pod costs a look at the services of its namespace only.
//! No client, no async, no clock; nothing here knows a wire format.

mod inject;
mod manifest;
mod namespace;
mod object;
mod opaque;
mod pod;
mod problems;
mod selector;
mod service;
mod settings;
mod slice;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use weft_api::model::Settings;

pub use namespace::Namespace;
pub use object::{Kind, NsName, Object, ObjectKey};
pub use opaque::PortList;
pub use pod::{Container, ContainerPort, Phase, Pod, PortRef, Probe};
pub use problems::ObjectProblem;
pub use service::{AppProtocol, Service, ServicePort};
pub use settings::{DefaultPolicy, InboundDefaults, InvalidDefaultPolicy, parse_duration};
pub use slice::{Slice, SliceEndpoint};

/// What is the same for the whole cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Namespace of the control plane: a part of every identity.
    pub controller_namespace: Arc<str>,
    /// Trust domain: the last part of every identity.
    pub trust_domain: Arc<str>,
    /// Suffix of service names, for example `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Networks whose addresses are inside the cluster.
    pub networks: Vec<IpNet>,
    /// Networks from which probes come.
    pub probe_networks: Vec<IpNet>,
    /// Inbound policy of pods that say nothing.
    pub default_inbound_policy: DefaultPolicy,
    /// Whether endpoints are reached through podIP:4143 with a transport header.
    pub transport_header: bool,
    /// Whether proxies may speak HTTP/2 between them for HTTP/1 requests.
    pub h2_upgrade: bool,
    /// Settings of pods that say nothing.
    pub settings: Settings,
}

/// The index.
#[derive(Debug)]
pub struct Index {
    cluster: Cluster,
    spaces: BTreeMap<Arc<str>, Space>,
    pod_ips: HashMap<IpAddr, BTreeSet<NsName>>,
    cluster_ips: HashMap<IpAddr, BTreeSet<NsName>>,
    host_ports: HashMap<SocketAddr, BTreeSet<NsName>>,
    nodes: HashMap<Arc<str>, BTreeSet<NsName>>,
}

/// One namespace.
#[derive(Debug, Default)]
struct Space {
    namespace: Option<Namespace>,
    pods: BTreeMap<Arc<str>, Pod>,
    services: BTreeMap<Arc<str>, Service>,
    slices: BTreeMap<Arc<str>, Slice>,
    service_accounts: BTreeSet<Arc<str>>,
}

/// An address of a service.
#[derive(Clone, Debug)]
pub struct Endpoint<'index> {
    /// Address and port of the endpoint itself.
    pub addr: SocketAddr,
    /// The pod behind it, if it is known.
    pub pod: Option<&'index Pod>,
    /// Name within a headless service.
    pub hostname: Option<&'index str>,
    /// The node it is on, if known.
    pub node: Option<&'index Arc<str>>,
}

/// How many objects of each kind are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Namespaces that were given.
    pub namespaces: usize,
    /// ServiceAccounts.
    pub service_accounts: usize,
    /// Pods.
    pub pods: usize,
    /// Pods that are to be meshed.
    pub meshed_pods: usize,
    /// Services.
    pub services: usize,
    /// EndpointSlices that were given.
    pub slices: usize,
}

impl Index {
    /// Makes an empty index.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            spaces: BTreeMap::new(),
            pod_ips: HashMap::new(),
            cluster_ips: HashMap::new(),
            host_ports: HashMap::new(),
            nodes: HashMap::new(),
        }
    }

    /// What is the same for the whole cluster.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes a new or changed object.
    pub fn apply(&mut self, key: &ObjectKey, object: &Object) {
        match object {
            Object::Namespace(namespace) => {
                let namespace = Namespace::read(namespace);
                let space = self.spaces.entry(Arc::clone(&key.name.name)).or_default();
                space.namespace = Some(namespace);
                space.settle_all(&self.cluster);
            }
            Object::ServiceAccount(_) => {
                let space = self.space_mut(&key.name.namespace);
                space.service_accounts.insert(Arc::clone(&key.name.name));
            }
            Object::Pod(pod) => self.apply_pod(Pod::read(key.name.clone(), pod)),
            Object::Service(service) => {
                self.apply_service(Service::read(key.name.clone(), service));
            }
            Object::EndpointSlice(slice) => {
                let space = self.space_mut(&key.name.namespace);
                space
                    .slices
                    .insert(Arc::clone(&key.name.name), Slice::read(slice));
            }
        }
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Namespace => {
                if let Some(space) = self.spaces.get_mut(&key.name.name) {
                    space.namespace = None;
                    space.settle_all(&self.cluster);
                }
            }
            Kind::ServiceAccount => {
                let space = self.space_mut(&key.name.namespace);
                space.service_accounts.remove(&key.name.name);
            }
            Kind::Pod => self.delete_pod(&key.name),
            Kind::Service => self.delete_service(&key.name),
            Kind::EndpointSlice => {
                let space = self.space_mut(&key.name.namespace);
                space.slices.remove(&key.name.name);
            }
        }
        self.spaces.retain(|_, space| !space.is_empty());
    }

    /// A pod by its name.
    pub fn find_pod(&self, name: &NsName) -> Option<&Pod> {
        self.spaces.get(&name.namespace)?.pods.get(&name.name)
    }

    /// The running pod that has an address of its own; pods in the host's network have none.
    pub fn find_pod_by_ip(&self, ip: IpAddr) -> Option<&Pod> {
        let mut pods = self.pod_ips.get(&ip)?.iter();
        pods.find_map(|name| self.find_pod(name).filter(|pod| pod.is_running()))
    }

    /// The running pod that a port of its node's address leads to.
    pub fn find_pod_by_host_port(&self, addr: SocketAddr) -> Option<(&Pod, u16)> {
        let mut pods = self.host_ports.get(&addr)?.iter();
        pods.find_map(|name| {
            let pod = self.find_pod(name).filter(|pod| pod.is_running())?;
            let ports = pod.containers.iter().flat_map(|one| &one.ports);
            let port = ports
                .filter(|port| port.host_port == Some(addr.port()))
                .map(|port| port.number)
                .next()?;
            Some((pod, port))
        })
    }

    /// The pods of a node that run or may yet run.
    pub fn pods_of_node(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.nodes
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|name| self.find_pod(name))
            .filter(|pod| !pod.is_finished())
    }

    /// A service by its name.
    pub fn find_service(&self, name: &NsName) -> Option<&Service> {
        self.spaces.get(&name.namespace)?.services.get(&name.name)
    }

    /// The services that claim a virtual address; more than one is somebody's mistake.
    pub fn services_by_ip(&self, ip: IpAddr) -> Vec<&Service> {
        let names = self.cluster_ips.get(&ip).into_iter().flatten();
        names.filter_map(|name| self.find_service(name)).collect()
    }

    /// The ready endpoints of a service's port, in the order of their names.
    ///
    /// They come from the service's EndpointSlices, or from the pods it selects if it has none.
    pub fn endpoints(&self, service: &Service, port: u16) -> Vec<Endpoint<'_>> {
        let Some(space) = self.spaces.get(&service.name.namespace) else {
            return Vec::new();
        };
        let mut sliced = space.slices_of(&service.name.name).peekable();
        if sliced.peek().is_some() {
            let found = sliced.flat_map(|slice| slice.endpoints(service, port));
            return found
                .map(|(endpoint, addr)| self.sliced_endpoint(service, endpoint, addr))
                .collect();
        }
        let selected = service
            .members
            .iter()
            .filter_map(|name| space.pods.get(name));
        selected
            .filter(|pod| pod.is_running() && !pod.is_terminating && !pod.host_ips_only())
            .filter(|pod| pod.is_ready || service.publish_not_ready)
            .filter_map(|pod| {
                let addr = SocketAddr::new(pod.main_ip()?, service.port_of(pod, port)?);
                Some(Endpoint {
                    addr,
                    pod: Some(pod),
                    hostname: pod.hostname_in(service),
                    node: pod.node.as_ref(),
                })
            })
            .collect()
    }

    /// How many objects of each kind are known.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes::default();
        for space in self.spaces.values() {
            sizes.namespaces += usize::from(space.namespace.is_some());
            sizes.service_accounts += space.service_accounts.len();
            sizes.pods += space.pods.len();
            sizes.meshed_pods += space.pods.values().filter(|pod| pod.is_meshed()).count();
            sizes.services += space.services.len();
            sizes.slices += space.slices.len();
        }
        sizes
    }

    fn space_mut(&mut self, namespace: &Arc<str>) -> &mut Space {
        self.spaces.entry(Arc::clone(namespace)).or_default()
    }

    fn apply_pod(&mut self, mut pod: Pod) {
        self.delete_pod(&pod.name);
        let name = pod.name.clone();
        if !pod.host_network && !pod.is_finished() {
            for ip in &pod.ips {
                self.pod_ips.entry(*ip).or_default().insert(name.clone());
            }
        }
        if let Some(node) = pod.node.clone().filter(|_| !pod.is_finished()) {
            self.nodes.entry(node).or_default().insert(name.clone());
        }
        for addr in pod.host_addrs() {
            self.host_ports
                .entry(addr)
                .or_default()
                .insert(name.clone());
        }
        let space = self.spaces.entry(Arc::clone(&name.namespace)).or_default();
        pod.settle(&self.cluster, space.namespace.as_ref());
        for service in space.services.values_mut() {
            service.admit(&pod);
        }
        space.pods.insert(Arc::clone(&name.name), pod);
    }

    fn delete_pod(&mut self, name: &NsName) {
        let Some(space) = self.spaces.get_mut(&name.namespace) else {
            return;
        };
        let Some(pod) = space.pods.remove(&name.name) else {
            return;
        };
        for service in space.services.values_mut() {
            service.members.remove(&name.name);
        }
        for ip in &pod.ips {
            forget(&mut self.pod_ips, ip, name);
        }
        for addr in pod.host_addrs() {
            forget(&mut self.host_ports, &addr, name);
        }
        if let Some(node) = &pod.node {
            forget(&mut self.nodes, node, name);
        }
    }

    fn apply_service(&mut self, mut service: Service) {
        self.delete_service(&service.name);
        for ip in &service.cluster_ips {
            let names = self.cluster_ips.entry(*ip).or_default();
            names.insert(service.name.clone());
        }
        let space = self.space_mut(&service.name.namespace);
        for pod in space.pods.values() {
            service.admit(pod);
        }
        let name = Arc::clone(&service.name.name);
        space.services.insert(name, service);
    }

    fn delete_service(&mut self, name: &NsName) {
        let space = self.spaces.get_mut(&name.namespace);
        let Some(service) = space.and_then(|space| space.services.remove(&name.name)) else {
            return;
        };
        for ip in &service.cluster_ips {
            forget(&mut self.cluster_ips, ip, name);
        }
    }

    fn sliced_endpoint<'index>(
        &'index self,
        service: &Service,
        endpoint: &'index SliceEndpoint,
        addr: SocketAddr,
    ) -> Endpoint<'index> {
        let namespace = &service.name.namespace;
        // An address without a reference may still be a pod's: sending it plaintext because the
        // author of the slice left the reference out would be outside the mesh unasked.
        let pod = match &endpoint.pod {
            Some(name) => self.find_pod(&NsName::new(Arc::clone(namespace), Arc::clone(name))),
            None => self
                .find_pod_by_ip(addr.ip())
                .filter(|pod| pod.name.namespace == *namespace),
        };
        Endpoint {
            addr,
            pod,
            hostname: endpoint.hostname.as_deref(),
            node: endpoint
                .node
                .as_ref()
                .or_else(|| pod.and_then(|pod| pod.node.as_ref())),
        }
    }
}

impl Space {
    fn is_empty(&self) -> bool {
        self.namespace.is_none()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.service_accounts.is_empty()
    }

    fn settle_all(&mut self, cluster: &Cluster) {
        for pod in self.pods.values_mut() {
            pod.settle(cluster, self.namespace.as_ref());
        }
    }

    fn slices_of<'space>(&'space self, service: &str) -> impl Iterator<Item = &'space Slice> {
        let service = service.to_owned();
        self.slices
            .values()
            .filter(move |slice| slice.service.as_deref() == Some(service.as_str()))
    }
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<NsName>>, key: &K, name: &NsName) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}
