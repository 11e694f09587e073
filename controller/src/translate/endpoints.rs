//! The endpoints of a service: `Destination.Get`.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use linkerd2_proxy_api::destination::{
    Http2ClientParams, ProtocolHint, TlsIdentity, WeightedAddr, http2_client_params::KeepAlive,
    protocol_hint, tls_identity,
};
use tonic::Code;
use weft_api::model::Identity;

use super::{Lookup, Refused, duration, resource_meta};
use crate::index::{Cluster, Endpoint, Index, NsName, Pod};

/// A service whose endpoints are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceEndpoints {
    /// The service.
    pub service: NsName,
    /// Its port.
    pub port: u16,
    /// Host name of one endpoint, if only that is wanted.
    pub instance: Option<String>,
}

/// The endpoints of a service's port.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSet {
    /// Labels of the set.
    pub labels: HashMap<String, String>,
    /// Whether a client is to be told of endpoints of its own node only.
    pub is_node_local: bool,
    /// The endpoints, by address.
    pub endpoints: Vec<Target>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its address.
    pub addr: SocketAddr,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// What a client is told.
    pub message: WeightedAddr,
}

/// Every endpoint has the same weight; balancing is the client's matter.
const WEIGHT: u32 = 10_000;
/// Port of a proxy's tap server. Like the admin port it is reached without a transport header.
const CONTROL_PORT: u16 = 4190;

impl ServiceEndpoints {
    /// Takes the request apart.
    ///
    /// # Errors
    /// Refuses addresses and names that are no service's.
    pub fn parse(path: &str, cluster_domain: &str) -> Result<Self, Refused> {
        match Lookup::parse(path, cluster_domain)? {
            Lookup::Addr(addr) => Err(Refused::new(
                Code::InvalidArgument,
                format!("IP queries not supported by Get API: host={}", addr.ip()),
            )),
            Lookup::Service {
                service,
                port,
                instance,
            } => Ok(Self {
                service,
                port,
                instance,
            }),
        }
    }

    /// Answers from the index.
    ///
    /// # Errors
    /// Refuses services that do not exist or have no endpoints by their nature.
    pub fn translate(&self, index: &Index) -> Result<EndpointSet, Refused> {
        let service = index
            .find_service(&self.service)
            .ok_or_else(|| Refused::unknown_service(&self.service))?;
        if service.is_external_name {
            return Err(Refused::new(
                Code::InvalidArgument,
                format!("service {} is of type ExternalName", self.service),
            ));
        }
        let wanted = |endpoint: &Endpoint<'_>| {
            self.instance.is_none() || endpoint.hostname == self.instance.as_deref()
        };
        let found = index.endpoints(service, self.port).into_iter();
        let mut endpoints: Vec<Target> = found
            .filter(wanted)
            .map(|endpoint| Target {
                addr: endpoint.addr,
                node: endpoint.node.cloned(),
                message: weighted_addr(endpoint.addr, endpoint.pod, index.cluster()),
            })
            .collect();
        endpoints.sort_by_key(|target| target.addr);
        endpoints.dedup_by_key(|target| target.addr);
        Ok(EndpointSet {
            labels: [
                ("namespace".to_owned(), self.service.namespace.to_string()),
                ("service".to_owned(), self.service.name.to_string()),
            ]
            .into(),
            is_node_local: service.is_node_local,
            endpoints,
        })
    }
}

/// What a client is told about an address, and about the pod behind it.
pub(super) fn weighted_addr(
    addr: SocketAddr,
    pod: Option<&Pod>,
    cluster: &Cluster,
) -> WeightedAddr {
    let bare = WeightedAddr {
        addr: Some(addr.into()),
        weight: WEIGHT,
        ..WeightedAddr::default()
    };
    let Some(pod) = pod else {
        return bare;
    };
    let settings = &pod.settled.settings;
    let meshed = pod.has_proxy(cluster) && !settings.skip_inbound.contains(addr.port());
    let mut message = WeightedAddr {
        metric_labels: labels(pod, cluster),
        resource_ref: Some(resource_meta("Pod", &pod.name, 0)),
        ..bare
    };
    if meshed {
        message.tls_identity = pod.settled.identity.as_ref().map(tls_identity);
        message.protocol_hint = hint(addr.port(), pod, cluster);
        message.http2 = Some(Http2ClientParams {
            keep_alive: Some(KeepAlive {
                interval: duration(Duration::from_secs(10)),
                timeout: duration(Duration::from_secs(3)),
                while_idle: true,
            }),
            ..Http2ClientParams::default()
        });
    }
    message
}

fn hint(port: u16, pod: &Pod, cluster: &Cluster) -> Option<ProtocolHint> {
    let settings = &pod.settled.settings;
    let is_opaque = settings.opaque.contains(port);
    let is_own = port == settings.admin_port || port == CONTROL_PORT;
    let by_header = !is_own && (cluster.transport_header || is_opaque);
    let protocol = match (is_opaque, cluster.h2_upgrade) {
        (true, _) => Some(protocol_hint::Protocol::Opaque(protocol_hint::Opaque {})),
        (false, true) => Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
        (false, false) => None,
    };
    let hint = ProtocolHint {
        protocol,
        opaque_transport: by_header.then(|| protocol_hint::OpaqueTransport {
            inbound_port: settings.inbound_port.into(),
        }),
    };
    (hint != ProtocolHint::default()).then_some(hint)
}

fn tls_identity(identity: &Identity) -> TlsIdentity {
    let name = identity.to_string();
    let dns = || tls_identity::DnsLikeIdentity { name: name.clone() };
    match identity {
        Identity::Dns(_) => TlsIdentity {
            strategy: Some(tls_identity::Strategy::DnsLikeIdentity(dns())),
            server_name: Some(dns()),
        },
        Identity::Spiffe(_) => TlsIdentity {
            strategy: Some(tls_identity::Strategy::UriLikeIdentity(
                tls_identity::UriLikeIdentity { uri: name.clone() },
            )),
            server_name: None,
        },
    }
}

fn labels(pod: &Pod, cluster: &Cluster) -> HashMap<String, String> {
    let (owner_kind, owner) = &pod.owner;
    let mut labels: HashMap<String, String> = [
        ("pod", pod.name.name.to_string()),
        ("serviceaccount", pod.service_account.to_string()),
        ("zone", String::new()),
        ("zone_locality", "unknown".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if !owner_kind.is_empty() {
        labels.insert(owner_kind.to_string(), owner.to_string());
    }
    if let Some(hash) = pod.labels.get("pod-template-hash") {
        labels.insert("pod_template_hash".to_owned(), hash.clone());
    }
    if pod.has_proxy(cluster) {
        let namespace = cluster.controller_namespace.to_string();
        labels.insert("control_plane_ns".to_owned(), namespace);
    }
    labels
}
