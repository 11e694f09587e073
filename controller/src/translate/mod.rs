//! From the index to what goes over the wire. Pure: no clock, no state, no I/O.
//!
//! One file per stream that a client can open. A translation that has the same result as before
//! is not sent; comparing is left to `serve`.

mod endpoints;
mod inbound;
mod nodes;
mod outbound;
mod profile;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use linkerd2_proxy_api::meta;
use tonic::Code;

use crate::index::NsName;

pub use endpoints::{EndpointSet, ServiceEndpoints, Target};
pub use inbound::InboundPort;
pub use nodes::{NodePods, PodMap};
pub use outbound::OutboundTarget;
pub use profile::ProfileTarget;

/// Why there is no answer: what a client is told instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Tells the client whether to come again.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// What a name or an address of a destination means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// An address.
    Addr(SocketAddr),
    /// A service, or one pod of it by its host name.
    Service {
        /// The service.
        service: NsName,
        /// Its port.
        port: u16,
        /// Host name of one endpoint.
        instance: Option<String>,
    },
}

impl Refused {
    /// Makes a refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn unknown_service(service: &NsName) -> Self {
        Self::new(Code::NotFound, format!("service {service} not found"))
    }
}

impl Lookup {
    /// Parses `host[:port]`, where host is an address, `service.namespace.svc.<domain>` or
    /// `instance.service.namespace.svc.<domain>`. The port is 80 if it is left out.
    ///
    /// # Errors
    /// Refuses every other form.
    pub fn parse(path: &str, cluster_domain: &str) -> Result<Self, Refused> {
        let invalid = || {
            let shown: String = path.chars().take(300).collect();
            Refused::new(Code::InvalidArgument, format!("Invalid authority: {shown}"))
        };
        if let Ok(addr) = path.parse() {
            return Ok(Self::Addr(addr));
        }
        if let Ok(ip) = path.trim_matches(['[', ']']).parse() {
            return Ok(Self::Addr(SocketAddr::new(ip, DEFAULT_PORT)));
        }
        let (host, port) = match path.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_error| invalid())?),
            None => (path, DEFAULT_PORT),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let name = host
            .strip_suffix(cluster_domain)
            .and_then(|host| host.strip_suffix(".svc."))
            .ok_or_else(invalid)?;
        let labels: Vec<&str> = name.split('.').collect();
        let (instance, service, namespace) = match labels[..] {
            [service, namespace] => (None, service, namespace),
            [instance, service, namespace] => (Some(instance), service, namespace),
            _ => return Err(invalid()),
        };
        if port == 0 || labels.iter().any(|label| label.is_empty()) {
            return Err(invalid());
        }
        Ok(Self::Service {
            service: NsName::new(namespace, service),
            port,
            instance: instance.map(ToOwned::to_owned),
        })
    }
}

/// Linkerd's port for authorities that name none.
const DEFAULT_PORT: u16 = 80;

fn default_meta(name: &str) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.to_owned())),
    }
}

fn resource_meta(kind: &str, name: &NsName, port: u16) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "core".to_owned(),
            kind: kind.to_owned(),
            name: name.name.to_string(),
            namespace: name.namespace.to_string(),
            section: String::new(),
            port: port.into(),
        })),
    }
}

fn duration(duration: std::time::Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
