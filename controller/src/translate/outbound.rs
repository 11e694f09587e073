//! How connections to a destination are treated: `OutboundPolicies`.
//!
//! Until routes are known to the index, every service has Linkerd's default policy.

use std::{net::SocketAddr, time::Duration};

use linkerd2_proxy_api::{
    destination::WeightedAddr,
    http_route::{HttpRouteMatch, PathMatch, path_match},
    meta::Metadata,
    opaque_route::Forbidden,
    outbound::{
        Backend, HttpRoute, OpaqueRoute, OutboundPolicy, ProxyProtocol, Queue, TrafficSpec,
        backend::{
            BalanceP2c, EndpointDiscovery, Kind as BackendKind,
            balance_p2c::{Load, PeakEwma},
            endpoint_discovery::{DestinationGet, Kind as DiscoveryKind},
        },
        http_route, opaque_route, proxy_protocol,
        proxy_protocol::Kind as ProtocolKind,
        traffic_spec,
    },
};
use tonic::Code;

use super::{Lookup, Refused, default_meta, duration, resource_meta};
use crate::index::{AppProtocol, Index, Service};

/// A destination whose policy is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutboundTarget(Lookup);

/// How long a proxy waits for the first bytes.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

impl OutboundTarget {
    /// Takes the request apart.
    ///
    /// # Errors
    /// Refuses requests without a target, and names that are no service's.
    pub fn parse(spec: TrafficSpec, cluster_domain: &str) -> Result<Self, Refused> {
        let invalid = |message: &str| Refused::new(Code::InvalidArgument, message);
        match spec.target.ok_or_else(|| invalid("target is required"))? {
            traffic_spec::Target::Addr(addr) => {
                let port = u16::try_from(addr.port)
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| invalid("target port must be 1 to 65535"))?;
                let ip = addr.ip.ok_or_else(|| invalid("target has no address"))?;
                let ip = ip
                    .try_into()
                    .map_err(|_error| invalid("target has no address"))?;
                Ok(Self(Lookup::Addr(SocketAddr::new(ip, port))))
            }
            traffic_spec::Target::Authority(authority) => {
                Self::parse_authority(&authority, cluster_domain)
            }
        }
    }

    /// `service.namespace.svc` with or without the cluster's domain.
    fn parse_authority(authority: &str, cluster_domain: &str) -> Result<Self, Refused> {
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
        let full = match host.ends_with(".svc") {
            true => format!("{host}.{cluster_domain}:{port}"),
            false => authority.to_owned(),
        };
        match Lookup::parse(&full, cluster_domain)? {
            Lookup::Service {
                service,
                port,
                instance: None,
            } => Ok(Self(Lookup::Service {
                service,
                port,
                instance: None,
            })),
            Lookup::Addr(_) | Lookup::Service { .. } => Err(Refused::new(
                Code::InvalidArgument,
                format!("Invalid authority: {authority}"),
            )),
        }
    }

    /// Answers from the index.
    ///
    /// # Errors
    /// Refuses addresses inside the cluster that are no service's: those have an endpoint
    /// profile. Refuses services that do not exist.
    pub fn translate(&self, index: &Index) -> Result<OutboundPolicy, Refused> {
        match &self.0 {
            Lookup::Addr(addr) => match index.services_by_ip(addr.ip()).first() {
                Some(service) => Ok(of_service(service, addr.port(), index)),
                None if index
                    .cluster()
                    .networks
                    .iter()
                    .any(|net| net.contains(&addr.ip())) =>
                {
                    Err(Refused::new(
                        Code::NotFound,
                        format!("{addr} is inside the cluster and no service's address"),
                    ))
                }
                None => Ok(egress_fallback(*addr)),
            },
            Lookup::Service { service, port, .. } => {
                let found = index.find_service(service);
                let service = found.ok_or_else(|| Refused::unknown_service(service))?;
                Ok(of_service(service, *port, index))
            }
        }
    }
}

fn of_service(service: &Service, port: u16, index: &Index) -> OutboundPolicy {
    let name = &service.name;
    let metadata = resource_meta("Service", name, port);
    let Some(defined) = service.find_port(port) else {
        return policy(metadata, undefined_port());
    };
    let domain = &index.cluster().cluster_domain;
    let backend = Backend {
        metadata: Some(metadata.clone()),
        queue: queue(),
        kind: Some(BackendKind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery {
                kind: Some(DiscoveryKind::Dst(DestinationGet {
                    path: format!("{}.{}.svc.{domain}:{port}", name.name, name.namespace),
                })),
            }),
            load: Some(Load::PeakEwma(PeakEwma {
                default_rtt: duration(Duration::from_millis(30)),
                decay: duration(Duration::from_secs(10)),
            })),
        })),
    };
    let http = vec![http_route("http", &backend)];
    let opaque = proxy_protocol::Opaque {
        routes: vec![opaque_route("opaq", &backend)],
    };
    let kind = match defined.app_protocol {
        None if !service.is_opaque(port) => detect(http, opaque),
        None | Some(AppProtocol::Opaque) => ProtocolKind::Opaque(opaque),
        Some(AppProtocol::Http1) => ProtocolKind::Http1(proxy_protocol::Http1 {
            routes: http,
            failure_accrual: None,
        }),
        Some(AppProtocol::Http2) => ProtocolKind::Http2(proxy_protocol::Http2 {
            routes: http,
            failure_accrual: None,
        }),
    };
    policy(metadata, kind)
}

/// Outside the cluster's networks connections go where they were going.
fn egress_fallback(addr: SocketAddr) -> OutboundPolicy {
    let name = "egress-fallback";
    let backend = Backend {
        metadata: Some(default_meta(name)),
        queue: queue(),
        kind: Some(BackendKind::Forward(WeightedAddr {
            addr: Some(addr.into()),
            weight: 1,
            ..WeightedAddr::default()
        })),
    };
    let opaque = proxy_protocol::Opaque {
        routes: vec![opaque_route(name, &backend)],
    };
    let kind = detect(vec![http_route(name, &backend)], opaque);
    policy(default_meta(name), kind)
}

fn undefined_port() -> ProtocolKind {
    let rule = opaque_route::Rule {
        backends: Some(opaque_route::Distribution {
            kind: Some(opaque_route::distribution::Kind::Empty(
                opaque_route::distribution::Empty {},
            )),
        }),
        filters: vec![opaque_route::Filter {
            kind: Some(opaque_route::filter::Kind::Forbidden(Forbidden {})),
        }],
    };
    ProtocolKind::Opaque(proxy_protocol::Opaque {
        routes: vec![OpaqueRoute {
            metadata: Some(default_meta("undefined-port")),
            rules: vec![rule],
        }],
    })
}

fn policy(metadata: Metadata, kind: ProtocolKind) -> OutboundPolicy {
    OutboundPolicy {
        metadata: Some(metadata),
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
    }
}

fn detect(http: Vec<HttpRoute>, opaque: proxy_protocol::Opaque) -> ProtocolKind {
    ProtocolKind::Detect(proxy_protocol::Detect {
        timeout: duration(DETECT_TIMEOUT),
        opaque: Some(opaque),
        http1: Some(proxy_protocol::Http1 {
            routes: http.clone(),
            failure_accrual: None,
        }),
        http2: Some(proxy_protocol::Http2 {
            routes: http,
            failure_accrual: None,
        }),
    })
}

fn http_route(name: &str, backend: &Backend) -> HttpRoute {
    use http_route::distribution::{FirstAvailable, Kind};
    HttpRoute {
        metadata: Some(default_meta(name)),
        hosts: Vec::new(),
        rules: vec![http_route::Rule {
            matches: vec![HttpRouteMatch {
                path: Some(PathMatch {
                    kind: Some(path_match::Kind::Prefix("/".to_owned())),
                }),
                ..HttpRouteMatch::default()
            }],
            backends: Some(http_route::Distribution {
                kind: Some(Kind::FirstAvailable(FirstAvailable {
                    backends: vec![http_route::RouteBackend {
                        backend: Some(backend.clone()),
                        ..http_route::RouteBackend::default()
                    }],
                })),
            }),
            ..http_route::Rule::default()
        }],
    }
}

fn opaque_route(name: &str, backend: &Backend) -> OpaqueRoute {
    use opaque_route::distribution::{FirstAvailable, Kind};
    OpaqueRoute {
        metadata: Some(default_meta(name)),
        rules: vec![opaque_route::Rule {
            backends: Some(opaque_route::Distribution {
                kind: Some(Kind::FirstAvailable(FirstAvailable {
                    backends: vec![opaque_route::RouteBackend {
                        backend: Some(backend.clone()),
                        filters: Vec::new(),
                    }],
                })),
            }),
            filters: Vec::new(),
        }],
    }
}

fn queue() -> Option<Queue> {
    Some(Queue {
        capacity: 100,
        failfast_timeout: duration(Duration::from_secs(3)),
    })
}
