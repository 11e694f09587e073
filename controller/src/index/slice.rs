//! EndpointSlices as they were given.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1;

use super::{PortRef, Service, manifest::port_number};

/// A part of the endpoints of a service.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The service, by the label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// Ports by name.
    pub ports: Vec<(Option<String>, u16)>,
    /// Endpoints that may be sent traffic.
    pub endpoints: Vec<SliceEndpoint>,
    /// What is wrong with the manifest.
    pub problems: Vec<String>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Name of the pod behind it.
    pub pod: Option<Arc<str>>,
    /// Name within a headless service.
    pub hostname: Option<String>,
    /// The node it is on.
    pub node: Option<Arc<str>>,
}

impl Slice {
    /// Reads what the index needs; what cannot be used is left out and reported.
    pub fn read(slice: &v1::EndpointSlice) -> Self {
        let mut problems = Vec::new();
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
        if service.is_none() {
            problems.push(
                "the label kubernetes.io/service-name is missing; the slice has no effect"
                    .to_owned(),
            );
        }
        let ports = slice.ports.iter().flatten();
        let ports = ports
            .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
            .filter_map(|port| Some((port.name.clone(), port_number(port.port?)?)))
            .map(|(name, port)| (name.filter(|name| !name.is_empty()), port));
        Self {
            service: service.cloned(),
            ports: ports.collect(),
            endpoints: slice
                .endpoints
                .iter()
                .filter_map(|endpoint| read_endpoint(endpoint, &mut problems))
                .collect(),
            problems,
        }
    }

    /// The endpoints that a port of the service leads to.
    pub(super) fn endpoints(
        &self,
        service: &Service,
        number: u16,
    ) -> Vec<(&SliceEndpoint, SocketAddr)> {
        let wanted = service.find_port(number);
        let ports = self.ports.iter().filter(|(name, port)| match wanted {
            Some(wanted) => {
                *name == wanted.name || (name.is_none() && wanted.target == PortRef::Number(*port))
            }
            None => *port == number,
        });
        let Some((_, port)) = ports.map(|(name, port)| (name, *port)).next() else {
            return Vec::new();
        };
        let endpoints = self.endpoints.iter();
        endpoints
            .map(|endpoint| (endpoint, SocketAddr::new(endpoint.ip, port)))
            .collect()
    }
}

fn read_endpoint(endpoint: &v1::Endpoint, problems: &mut Vec<String>) -> Option<SliceEndpoint> {
    let ready = endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready);
    if ready == Some(false) {
        return None;
    }
    // All addresses of an endpoint are the same endpoint; Kubernetes itself uses the first.
    let text = endpoint.addresses.first()?;
    let Ok(ip) = text.parse() else {
        problems.push(format!(
            "endpoints.addresses: {text:?} is not an IP address"
        ));
        return None;
    };
    let target = endpoint.target_ref.as_ref();
    let pod = target.filter(|target| target.kind.as_deref() == Some("Pod"));
    Some(SliceEndpoint {
        ip,
        pod: pod.and_then(|pod| pod.name.as_deref()).map(Arc::from),
        hostname: endpoint.hostname.clone(),
        node: endpoint.node_name.as_deref().map(Arc::from),
    })
}
