//! Servers of the inbound policy API.
//!
//! A route whose conditions or filters cannot be represented is left out, and its requests get
//! 404: leaving out only the condition would let more pass than was asked.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use linkerd2_proxy_api::{
    grpc_route::GrpcRouteMatch,
    http_route::{HttpRouteMatch, path_match},
    inbound::{
        Authn, Authz, GrpcRoute, HttpRoute, Network, Server,
        authn::{Permit, permit_mesh_tls::Clients},
        proxy_protocol::Kind,
    },
    net,
};

use super::{Invalid, duration, invalid, metadata};
use crate::discovery::{
    defaults,
    model::{
        Authentication, Authorization, InboundRoute, InboundServer, Meta, MethodAndPath,
        NetworkMatch, PathMatch, Protocol,
    },
};

/// Linkerd's limit for the first bytes of a connection.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the policy of a port.
///
/// # Errors
/// When a part cannot be understood.
pub(in crate::discovery) fn server(server: Server, port: u16) -> Result<InboundServer, Invalid> {
    let kind = server.protocol.and_then(|protocol| protocol.kind);
    let mut detect_timeout = DETECT_TIMEOUT;
    let (protocol, routes) = match kind.ok_or(Invalid::Missing("protocol"))? {
        Kind::Detect(detect) => {
            detect_timeout = duration("detect.timeout", detect.timeout, DETECT_TIMEOUT)?;
            (Protocol::Detect, http_routes(detect.http_routes)?)
        }
        Kind::Http1(http) => (Protocol::Http1, http_routes(http.routes)?),
        Kind::Http2(http) => (Protocol::Http2, http_routes(http.routes)?),
        Kind::Grpc(grpc) => (Protocol::Grpc, grpc_routes(grpc.routes)?),
        Kind::Opaque(_) => (Protocol::Opaque, Vec::new()),
        Kind::Tls(_) => (Protocol::Tls, Vec::new()),
    };
    let mut authorizations = authorizations(server.authorizations)?;
    authorizations.push(defaults::localhost());
    Ok(InboundServer {
        protocol,
        detect_timeout,
        meta: Meta {
            port: Some(port),
            ..labels(&server.labels)
        },
        authorizations: authorizations.into(),
        routes: routes.into(),
    })
}

fn http_routes(routes: Vec<HttpRoute>) -> Result<Vec<InboundRoute>, Invalid> {
    if routes.is_empty() {
        return Ok(vec![defaults::route()]);
    }
    let mut found = Vec::with_capacity(routes.len());
    for route in routes {
        let meta = metadata(route.metadata)?;
        let authorizations = authorizations(route.authorizations)?.into();
        let is_known = route.hosts.is_empty();
        let rules = route
            .rules
            .into_iter()
            .filter(|rule| rule.filters.is_empty());
        for rule in rules.filter(|_| is_known) {
            found.extend(route_of(
                &meta,
                &authorizations,
                rule.matches.into_iter().map(http_match),
            ));
        }
    }
    Ok(found)
}

fn grpc_routes(routes: Vec<GrpcRoute>) -> Result<Vec<InboundRoute>, Invalid> {
    if routes.is_empty() {
        return Ok(vec![defaults::route()]);
    }
    let mut found = Vec::with_capacity(routes.len());
    for route in routes {
        let meta = metadata(route.metadata)?;
        let authorizations = authorizations(route.authorizations)?.into();
        let is_known = route.hosts.is_empty();
        let rules = route
            .rules
            .into_iter()
            .filter(|rule| rule.filters.is_empty());
        for rule in rules.filter(|_| is_known) {
            found.extend(route_of(
                &meta,
                &authorizations,
                rule.matches.into_iter().map(grpc_match),
            ));
        }
    }
    Ok(found)
}

/// A route of those matches that can be represented; none if there were some and none can.
fn route_of(
    meta: &Meta,
    authorizations: &Arc<[Authorization]>,
    matches: impl ExactSizeIterator<Item = Option<MethodAndPath>>,
) -> Option<InboundRoute> {
    let matches_all = matches.len() == 0;
    let matches: Vec<_> = matches.flatten().collect();
    (matches_all || !matches.is_empty()).then(|| InboundRoute {
        meta: meta.clone(),
        matches,
        authorizations: Arc::clone(authorizations),
    })
}

fn http_match(wanted: HttpRouteMatch) -> Option<MethodAndPath> {
    if !wanted.headers.is_empty() || !wanted.query_params.is_empty() {
        return None;
    }
    let path = match wanted.path.map(|path| path.kind) {
        None => None,
        Some(Some(path_match::Kind::Exact(path))) => Some(PathMatch::Exact(path.into())),
        Some(Some(path_match::Kind::Prefix(path))) => Some(PathMatch::Prefix(path.into())),
        Some(Some(path_match::Kind::Regex(_)) | None) => return None,
    };
    let method = match wanted.method {
        None => None,
        Some(method) => Some(http::Method::try_from(method).ok()?),
    };
    Some(MethodAndPath { method, path })
}

fn grpc_match(wanted: GrpcRouteMatch) -> Option<MethodAndPath> {
    if !wanted.headers.is_empty() {
        return None;
    }
    let rpc = wanted.rpc.unwrap_or_default();
    let path = match (rpc.service.is_empty(), rpc.method.is_empty()) {
        (true, true) => None,
        (true, false) => return None,
        (false, true) => Some(PathMatch::Prefix(format!("/{}", rpc.service).into())),
        (false, false) => {
            let path = format!("/{}/{}", rpc.service, rpc.method);
            Some(PathMatch::Exact(path.into()))
        }
    };
    Some(MethodAndPath { method: None, path })
}

fn authorizations(authorizations: Vec<Authz>) -> Result<Vec<Authorization>, Invalid> {
    authorizations
        .into_iter()
        // Without a network an authorization is for nobody: the API says to ignore it.
        .filter(|authz| !authz.networks.is_empty())
        .map(|authz| {
            let meta = match authz.metadata {
                Some(_) => metadata(authz.metadata)?,
                None => labels(&authz.labels),
            };
            let networks = authz.networks.into_iter().map(network);
            Ok(Authorization {
                meta,
                networks: networks.collect::<Result<_, _>>()?,
                authentication: authentication(authz.authentication)?,
            })
        })
        .collect()
}

fn network(network: Network) -> Result<NetworkMatch, Invalid> {
    let net = network.net.ok_or(Invalid::Missing("network.net"))?;
    Ok(NetworkMatch {
        net: ip_net(net)?,
        except: network
            .except
            .into_iter()
            .map(ip_net)
            .collect::<Result<_, _>>()?,
    })
}

fn ip_net(network: net::IpNetwork) -> Result<IpNet, Invalid> {
    let ip = network.ip.ok_or(Invalid::Missing("network.ip"))?;
    let ip: IpAddr = ip
        .try_into()
        .map_err(|_empty: net::InvalidIpAddress| Invalid::Missing("network.ip.ip"))?;
    u8::try_from(network.prefix_len)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .ok_or_else(|| invalid("network.prefix_len", network.prefix_len))
}

fn authentication(authn: Option<Authn>) -> Result<Authentication, Invalid> {
    let permit = authn.and_then(|authn| authn.permit);
    let tls = match permit.ok_or(Invalid::Missing("authentication"))? {
        Permit::Unauthenticated(_) => return Ok(Authentication::Unauthenticated),
        Permit::MeshTls(tls) => tls,
    };
    match tls
        .clients
        .ok_or(Invalid::Missing("authentication.clients"))?
    {
        Clients::Unauthenticated(_) => Ok(Authentication::TlsUnauthenticated),
        Clients::Identities(clients) => Ok(Authentication::Identities {
            exact: clients
                .identities
                .into_iter()
                .map(|one| one.name.into())
                .collect(),
            suffixes: clients
                .suffixes
                .into_iter()
                .map(|suffix| suffix.parts.join(".").to_lowercase().into())
                .collect(),
        }),
    }
}

/// The older way of naming an object: labels `group`, `kind`, `name`.
fn labels(labels: &HashMap<String, String>) -> Meta {
    let label = |key: &str| Arc::from(labels.get(key).map_or("", String::as_str));
    let mut meta = Meta::default_named("");
    (meta.group, meta.kind, meta.name) = (label("group"), label("kind"), label("name"));
    meta
}
