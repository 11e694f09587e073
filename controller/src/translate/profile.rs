//! What is known about a destination as a whole: `Destination.GetProfile`.

use std::{net::SocketAddr, time::Duration};

use linkerd2_proxy_api::destination::{DestinationProfile, RetryBudget};
use tonic::Code;

use super::{Lookup, Refused, duration, endpoints::weighted_addr, resource_meta};
use crate::index::{Index, NsName, Pod, Service};

/// A destination whose profile is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProfileTarget(Lookup);

impl ProfileTarget {
    /// Takes the request apart.
    ///
    /// # Errors
    /// Refuses what is neither an address nor the name of a service.
    pub fn parse(path: &str, cluster_domain: &str) -> Result<Self, Refused> {
        Lookup::parse(path, cluster_domain).map(Self)
    }

    /// Answers from the index.
    ///
    /// # Errors
    /// Refuses addresses that two services claim, and names that do not exist.
    pub fn translate(&self, index: &Index) -> Result<DestinationProfile, Refused> {
        match &self.0 {
            Lookup::Addr(addr) => by_addr(*addr, index),
            Lookup::Service {
                service,
                port,
                instance: None,
            } => {
                let found = index.find_service(service);
                let service = found.ok_or_else(|| Refused::unknown_service(service))?;
                Ok(of_service(service, *port, index))
            }
            Lookup::Service {
                service,
                port,
                instance: Some(instance),
            } => of_instance(service, *port, instance, index),
        }
    }
}

fn by_addr(addr: SocketAddr, index: &Index) -> Result<DestinationProfile, Refused> {
    let services = index.services_by_ip(addr.ip());
    match services[..] {
        [] => {}
        [service] => return Ok(of_service(service, addr.port(), index)),
        _ => {
            let names: Vec<_> = services.iter().map(|one| one.name.to_string()).collect();
            return Err(Refused::new(
                Code::FailedPrecondition,
                format!(
                    "address {} is claimed by services {}",
                    addr.ip(),
                    names.join(", ")
                ),
            ));
        }
    }
    if let Some(pod) = index.find_pod_by_ip(addr.ip()) {
        return Ok(of_endpoint(addr, Some(pod), index));
    }
    Ok(match index.find_pod_by_host_port(addr) {
        Some((pod, port)) => match pod.main_ip() {
            Some(ip) => of_endpoint(SocketAddr::new(ip, port), Some(pod), index),
            None => of_endpoint(addr, None, index),
        },
        None => of_endpoint(addr, None, index),
    })
}

fn of_service(service: &Service, port: u16, index: &Index) -> DestinationProfile {
    // A client that gets an empty profile asks for the policy, which forbids such ports.
    if service.find_port(port).is_none() {
        return DestinationProfile::default();
    }
    let name = &service.name;
    let domain = &index.cluster().cluster_domain;
    DestinationProfile {
        fully_qualified_name: format!("{}.{}.svc.{domain}", name.name, name.namespace),
        opaque_protocol: service.is_opaque(port),
        retry_budget: default_budget(),
        parent_ref: Some(resource_meta("Service", name, port)),
        ..DestinationProfile::default()
    }
}

fn of_instance(
    name: &NsName,
    port: u16,
    instance: &str,
    index: &Index,
) -> Result<DestinationProfile, Refused> {
    let service = index
        .find_service(name)
        .ok_or_else(|| Refused::unknown_service(name))?;
    let endpoints = index.endpoints(service, port);
    let found = endpoints
        .iter()
        .find(|endpoint| endpoint.hostname == Some(instance));
    let endpoint = found.ok_or_else(|| {
        let message = format!("service {name} has no endpoint {instance}");
        Refused::new(Code::NotFound, message)
    })?;
    Ok(of_endpoint(endpoint.addr, endpoint.pod, index))
}

fn of_endpoint(addr: SocketAddr, pod: Option<&Pod>, index: &Index) -> DestinationProfile {
    let opaque = match pod {
        Some(pod) => &pod.settled.settings.opaque,
        None => &index.cluster().settings.opaque,
    };
    DestinationProfile {
        opaque_protocol: opaque.contains(addr.port()),
        retry_budget: default_budget(),
        endpoint: Some(weighted_addr(addr, pod, index.cluster())),
        ..DestinationProfile::default()
    }
}

fn default_budget() -> Option<RetryBudget> {
    Some(RetryBudget {
        retry_ratio: 0.2,
        min_retries_per_second: 10,
        ttl: duration(Duration::from_secs(10)),
    })
}
