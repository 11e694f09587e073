//! Services: virtual addresses, ports, and the pods they select.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};
use weft_api::model::Settings;

use super::{NsName, Pod, PortList, PortRef, manifest::port_number, selector};

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Namespace and name.
    pub name: NsName,
    /// Virtual addresses; none for headless services.
    pub cluster_ips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// Whether it is only a name for another name.
    pub is_external_name: bool,
    /// Whether endpoints that are not ready count.
    pub publish_not_ready: bool,
    /// Whether clients are to use endpoints of their own node only.
    pub is_node_local: bool,
    /// Names of the pods that the selector chooses.
    pub members: BTreeSet<Arc<str>>,
    /// What is wrong with the manifest.
    pub problems: Vec<String>,
    selector: BTreeMap<String, String>,
    opaque: PortList,
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; services with one port may leave it out.
    pub name: Option<String>,
    /// Number.
    pub number: u16,
    /// Where it leads in a pod.
    pub target: PortRef,
    /// What is spoken on it, if the author says so.
    pub app_protocol: Option<AppProtocol>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP/1
    Http1,
    /// HTTP/2 without TLS of its own
    Http2,
    /// Anything else
    Opaque,
}

impl Service {
    /// Reads what the index needs; what cannot be used is left out and reported.
    pub fn read(name: NsName, service: &v1::Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let mut problems = Vec::new();
        let is_external_name = spec.type_.as_deref() == Some("ExternalName");
        let annotations = service.metadata.annotations.as_ref();
        let opaque = annotations
            .and_then(|annotations| annotations.get("config.linkerd.io/opaque-ports"))
            .and_then(|text| match PortList::parse(text) {
                Ok(list) => Some(list),
                Err(error) => {
                    problems.push(format!(
                        "config.linkerd.io/opaque-ports: {error}; the default is used"
                    ));
                    None
                }
            })
            .unwrap_or_else(|| PortList::of(Settings::default().opaque));
        let ports = spec.ports.unwrap_or_default();
        Self {
            cluster_ips: match is_external_name {
                true => Vec::new(),
                false => cluster_ips(&spec.cluster_ips, spec.cluster_ip.as_ref(), &mut problems),
            },
            ports: ports
                .iter()
                .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
                .filter_map(|port| read_port(port, &mut problems))
                .collect(),
            is_external_name,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            is_node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            members: BTreeSet::new(),
            problems,
            selector: spec.selector.unwrap_or_default(),
            opaque,
            name,
        }
    }

    /// Takes the pod in as a member if the selector chooses it.
    pub(super) fn admit(&mut self, pod: &Pod) {
        if !self.is_external_name && selector::selects(&self.selector, &pod.labels) {
            self.members.insert(Arc::clone(&pod.name.name));
        }
    }

    /// The port with a number.
    pub fn find_port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether connections to a port are proxied as bytes.
    pub fn is_opaque(&self, number: u16) -> bool {
        let port = self.find_port(number);
        match port.and_then(|port| port.app_protocol) {
            Some(protocol) => protocol == AppProtocol::Opaque,
            None => {
                let name = port.and_then(|port| port.name.as_deref());
                self.opaque.contains(number, name)
            }
        }
    }

    /// The port of a pod that a port of the service leads to. A port that the service does not
    /// define leads to the same number.
    pub fn port_of(&self, pod: &Pod, number: u16) -> Option<u16> {
        match self.find_port(number).map(|port| &port.target) {
            None => Some(number),
            Some(PortRef::Number(target)) => Some(*target),
            Some(PortRef::Name(name)) => pod.find_port(name),
        }
    }
}

fn cluster_ips(
    list: &Option<Vec<String>>,
    first: Option<&String>,
    problems: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let all = list.iter().flatten().chain(first);
    for text in all.filter(|text| !text.is_empty() && *text != "None") {
        match text.parse() {
            Ok(ip) if found.contains(&ip) => {}
            Ok(ip) => found.push(ip),
            Err(_) => problems.push(format!("spec.clusterIP: {text:?} is not an IP address")),
        }
    }
    found
}

fn read_port(port: &v1::ServicePort, problems: &mut Vec<String>) -> Option<ServicePort> {
    let mut wrong = |field, value: &dyn std::fmt::Debug| {
        problems.push(format!(
            "spec.ports: {field} {value:?} is not a port (1 to 65535)"
        ));
    };
    let Some(number) = port_number(port.port) else {
        wrong("port", &port.port);
        return None;
    };
    let target = match &port.target_port {
        None => PortRef::Number(number),
        // The API server sets 0 for headless services that leave it out.
        Some(IntOrString::Int(0)) => PortRef::Number(number),
        Some(IntOrString::Int(target)) => match port_number(*target) {
            Some(target) => PortRef::Number(target),
            None => {
                wrong("targetPort", target);
                return None;
            }
        },
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(target) => PortRef::Number(target),
            Err(_) => PortRef::Name(name.clone()),
        },
    };
    Some(ServicePort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        number,
        target,
        app_protocol: match port.app_protocol.as_deref() {
            None | Some("") => None,
            Some("http") => Some(AppProtocol::Http1),
            Some("kubernetes.io/h2c") => Some(AppProtocol::Http2),
            Some(_) => Some(AppProtocol::Opaque),
        },
    })
}
