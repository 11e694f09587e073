//! Profiles and outbound policies.
//!
//! Of a policy's routes the first backend of the first rule is used; matching requests to routes
//! is not done here. Of a profile only the name, the endpoint and the opaque mark are read.

use std::{collections::HashMap, sync::Arc, time::Duration};

use linkerd2_proxy_api::{
    destination::DestinationProfile,
    grpc_route, http_route,
    outbound::{
        self as proto, Backend,
        backend::{Kind as BackendKind, endpoint_discovery},
        proxy_protocol::Kind,
    },
};

use super::{Invalid, authority, duration, endpoint, metadata};
use crate::discovery::model::{Endpoint, Meta, Protocol};

/// Linkerd's limit for the first bytes of a connection.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an outbound policy says.
#[derive(Debug)]
pub(in crate::discovery) struct Policy {
    pub(in crate::discovery) protocol: Protocol,
    pub(in crate::discovery) detect_timeout: Duration,
    pub(in crate::discovery) parent: Meta,
    pub(in crate::discovery) route: Meta,
    pub(in crate::discovery) backend: Meta,
    pub(in crate::discovery) goal: Goal,
}

/// Where a policy sends connections.
#[derive(Clone, Debug)]
pub(in crate::discovery) enum Goal {
    /// To the endpoints of this authority.
    Balance(Arc<str>),
    /// To this endpoint.
    Forward(Arc<Endpoint>),
    /// Nowhere.
    Forbidden(&'static str),
}

/// What a profile says.
#[derive(Debug, Default)]
pub(in crate::discovery) struct Profile {
    /// Name of the service without a port, if the address belongs to one.
    pub(in crate::discovery) name: Option<Arc<str>>,
    /// The one endpoint, if the address belongs to one.
    pub(in crate::discovery) endpoint: Option<Arc<Endpoint>>,
    /// Whether the bytes are not to be looked at.
    pub(in crate::discovery) is_opaque: bool,
}

/// Reads a profile.
///
/// # Errors
/// When the name or the endpoint cannot be understood.
pub(in crate::discovery) fn profile(profile: DestinationProfile) -> Result<Profile, Invalid> {
    let name = match profile.fully_qualified_name.is_empty() {
        true => None,
        false => Some(authority(
            "fully_qualified_name",
            profile.fully_qualified_name,
        )?),
    };
    let no_labels = HashMap::new();
    Ok(Profile {
        name,
        endpoint: profile
            .endpoint
            .map(|addr| endpoint(addr, &no_labels).map(Arc::new))
            .transpose()?,
        is_opaque: profile.opaque_protocol,
    })
}

/// Reads an outbound policy.
///
/// # Errors
/// When a part that is used cannot be understood.
pub(in crate::discovery) fn policy(policy: proto::OutboundPolicy) -> Result<Policy, Invalid> {
    let kind = policy.protocol.and_then(|protocol| protocol.kind);
    let mut detect_timeout = DETECT_TIMEOUT;
    let (protocol, choice) = match kind.ok_or(Invalid::Missing("protocol"))? {
        Kind::Detect(detect) => {
            detect_timeout = duration("detect.timeout", detect.timeout, DETECT_TIMEOUT)?;
            let http = detect.http1.map(|http| http.routes).unwrap_or_default();
            let opaque = detect
                .opaque
                .map(|opaque| opaque.routes)
                .unwrap_or_default();
            let choice = choose_http(http).or_else(|| choose_opaque(opaque));
            (Protocol::Detect, choice)
        }
        Kind::Opaque(opaque) => (Protocol::Opaque, choose_opaque(opaque.routes)),
        Kind::Http1(http) => (Protocol::Http1, choose_http(http.routes)),
        Kind::Http2(http) => (Protocol::Http2, choose_http(http.routes)),
        Kind::Grpc(grpc) => (Protocol::Grpc, choose_grpc(grpc.routes)),
        Kind::Tls(tls) => (Protocol::Tls, choose_tls(tls.routes)),
    };
    let choice = choice.ok_or(Invalid::Missing("routes"))?;
    let (backend, goal) = match choice.verdict {
        Verdict::Forbidden(reason) => (Meta::default_named(""), Goal::Forbidden(reason)),
        Verdict::Backend(backend) => goal(backend)?,
    };
    Ok(Policy {
        protocol,
        detect_timeout,
        parent: metadata(policy.metadata)?,
        route: metadata(choice.route)?,
        backend,
        goal,
    })
}

fn goal(backend: Backend) -> Result<(Meta, Goal), Invalid> {
    let meta = metadata(backend.metadata)?;
    let goal = match backend.kind.ok_or(Invalid::Missing("backend.kind"))? {
        BackendKind::Forward(addr) => Goal::Forward(Arc::new(endpoint(addr, &HashMap::new())?)),
        BackendKind::Balancer(balancer) => {
            match balancer.discovery.and_then(|discovery| discovery.kind) {
                None => return Err(Invalid::Missing("balancer.discovery")),
                Some(endpoint_discovery::Kind::Dst(dst)) => {
                    Goal::Balance(authority("balancer.discovery.path", dst.path)?)
                }
            }
        }
    };
    Ok((meta, goal))
}

/// A route, and what becomes of what takes it.
struct Choice {
    route: Option<linkerd2_proxy_api::meta::Metadata>,
    verdict: Verdict,
}

#[expect(clippy::large_enum_variant, reason = "lives for one conversion")]
enum Verdict {
    Backend(Backend),
    Forbidden(&'static str),
}

/// The first backend of the first rule of the first route. The four kinds of routes have the same
/// shape and no common type.
macro_rules! choose {
    ($name:ident, $route:ident, $module:ident, $forbids:ident) => {
        fn $name(routes: Vec<proto::$route>) -> Option<Choice> {
            use proto::$module::distribution::Kind;
            let route = routes.into_iter().next()?;
            let rule = route.rules.into_iter().next()?;
            let forbidden = |filters: &[proto::$module::Filter]| {
                filters
                    .iter()
                    .filter_map(|filter| filter.kind.as_ref())
                    .find_map($forbids)
            };
            let first = match rule.backends.and_then(|backends| backends.kind) {
                Some(Kind::FirstAvailable(first)) => first.backends.into_iter().next(),
                Some(Kind::RandomAvailable(random)) => random
                    .backends
                    .into_iter()
                    .find(|backend| backend.weight > 0)
                    .and_then(|backend| backend.backend),
                Some(Kind::Empty(_)) | None => None,
            };
            let verdict = match (forbidden(&rule.filters), first) {
                (Some(reason), _) => Verdict::Forbidden(reason),
                (None, None) => Verdict::Forbidden("route without backend"),
                (None, Some(backend)) => match (forbidden(&backend.filters), backend.backend) {
                    (Some(reason), _) => Verdict::Forbidden(reason),
                    (None, None) => Verdict::Forbidden("route without backend"),
                    (None, Some(backend)) => Verdict::Backend(backend),
                },
            };
            Some(Choice {
                route: route.metadata,
                verdict,
            })
        }
    };
}

choose!(choose_http, HttpRoute, http_route, http_forbids);
choose!(choose_grpc, GrpcRoute, grpc_route, grpc_forbids);
choose!(choose_opaque, OpaqueRoute, opaque_route, opaque_forbids);
choose!(choose_tls, TlsRoute, tls_route, tls_forbids);

fn http_forbids(filter: &proto::http_route::filter::Kind) -> Option<&'static str> {
    use proto::http_route::filter::Kind;
    match filter {
        Kind::FailureInjector(http_route::HttpFailureInjector { ratio: None, .. }) => {
            Some("traffic not allowed")
        }
        Kind::FailureInjector(_)
        | Kind::RequestHeaderModifier(_)
        | Kind::Redirect(_)
        | Kind::ResponseHeaderModifier(_) => None,
    }
}

fn grpc_forbids(filter: &proto::grpc_route::filter::Kind) -> Option<&'static str> {
    use proto::grpc_route::filter::Kind;
    match filter {
        Kind::FailureInjector(grpc_route::GrpcFailureInjector { ratio: None, .. }) => {
            Some("traffic not allowed")
        }
        Kind::FailureInjector(_) | Kind::RequestHeaderModifier(_) => None,
    }
}

const fn opaque_forbids(filter: &proto::opaque_route::filter::Kind) -> Option<&'static str> {
    use proto::opaque_route::filter::Kind;
    match filter {
        Kind::Invalid(_) => Some("invalid backend"),
        Kind::Forbidden(_) => Some("forbidden"),
    }
}

const fn tls_forbids(filter: &proto::tls_route::filter::Kind) -> Option<&'static str> {
    use proto::tls_route::filter::Kind;
    match filter {
        Kind::Invalid(_) => Some("invalid backend"),
        Kind::Forbidden(_) => Some("forbidden"),
    }
}
