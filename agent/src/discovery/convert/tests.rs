//! Messages and what becomes of them.

use std::collections::HashMap;

use linkerd2_proxy_api::{
    destination::{
        AuthorityOverride, ProtocolHint, TlsIdentity, WeightedAddr, protocol_hint, tls_identity,
    },
    http_route, http_types,
    inbound::{self, Authn, Authz, Network, authn, proxy_protocol},
    net::TcpAddress,
    opaque_route,
    outbound::{self, OutboundPolicy},
};

use super::*;
use crate::discovery::model::{
    Authentication, Hint, InboundRoute, MethodAndPath, PathMatch, Protocol,
};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

fn default_meta(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.to_owned())),
    })
}

fn tcp(addr: &str) -> Option<TcpAddress> {
    Some(addr.parse::<SocketAddr>().unwrap().into())
}

fn dns(name: &str) -> tls_identity::DnsLikeIdentity {
    tls_identity::DnsLikeIdentity {
        name: name.to_owned(),
    }
}

fn with_identity(identity: TlsIdentity) -> WeightedAddr {
    WeightedAddr {
        addr: tcp("10.1.0.2:80"),
        tls_identity: Some(identity),
        ..WeightedAddr::default()
    }
}

fn of_dns(name: &str, server_name: Option<&str>) -> WeightedAddr {
    with_identity(TlsIdentity {
        strategy: Some(tls_identity::Strategy::DnsLikeIdentity(dns(name))),
        server_name: server_name.map(dns),
    })
}

fn of_uri(uri: &str, server_name: Option<&str>) -> WeightedAddr {
    let uri = tls_identity::UriLikeIdentity {
        uri: uri.to_owned(),
    };
    with_identity(TlsIdentity {
        strategy: Some(tls_identity::Strategy::UriLikeIdentity(uri)),
        server_name: server_name.map(dns),
    })
}

#[test]
fn an_endpoint_has_its_identity_or_is_refused() {
    for (addr, expected) in [
        (of_dns(WEB, None), Ok((WEB, WEB))),
        (
            of_dns(WEB, Some("other.example")),
            Ok((WEB, "other.example")),
        ),
        (
            of_uri("spiffe://td/vm", Some(WEB)),
            Ok(("spiffe://td/vm", WEB)),
        ),
        (
            of_uri("spiffe://td/vm", None),
            Err("tls_identity.server_name is missing"),
        ),
        (
            of_dns("not a name", None),
            Err(r#"tls_identity: "not a name" is not valid"#),
        ),
        (
            of_dns(WEB, Some("..")),
            Err(r#"tls_identity.server_name: ".." is not valid"#),
        ),
        (
            with_identity(TlsIdentity::default()),
            Err("tls_identity.strategy is missing"),
        ),
    ] {
        let found = endpoint(addr, &HashMap::new()).map(|endpoint| endpoint.tls.unwrap());
        let found = found.map(|tls| (tls.identity.to_string(), tls.server_name.to_string()));
        let expected = expected
            .map(|(identity, name)| (identity.to_owned(), name.to_owned()))
            .map_err(str::to_owned);
        assert_eq!(found.map_err(|error| error.to_string()), expected);
    }
}

#[test]
fn ports_that_cannot_be_are_refused_and_not_cut() {
    for (port, expected) in [
        (80, None),
        (0, Some(r#"addr.port: "0" is not valid"#)),
        (65_616, Some(r#"addr.port: "65616" is not valid"#)),
    ] {
        let mut addr = tcp("10.1.0.2:80").unwrap();
        addr.port = port;
        let error = address(addr).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), expected, "{port}");
    }
    assert_eq!(
        address(TcpAddress { ip: None, port: 80 }),
        Err(Invalid::Missing("addr.ip"))
    );
}

#[test]
fn hints_override_and_labels_are_taken() {
    let labels = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    };
    let addr = WeightedAddr {
        addr: tcp("[::ffff:10.1.0.2]:80"),
        metric_labels: labels(&[("pod", "web-1"), ("zone", ""), ("no-label", "x")]),
        protocol_hint: Some(ProtocolHint {
            protocol: Some(protocol_hint::Protocol::Opaque(protocol_hint::Opaque {})),
            opaque_transport: Some(protocol_hint::OpaqueTransport { inbound_port: 4143 }),
        }),
        authority_override: Some(AuthorityOverride {
            authority_override: "web.shop.svc.east:80".to_owned(),
        }),
        ..WeightedAddr::default()
    };
    let set = labels(&[("service", "web"), ("namespace", "shop"), ("pod", "hidden")]);
    let endpoint = endpoint(addr, &set).unwrap();
    assert_eq!(endpoint.addr, "10.1.0.2:80".parse().unwrap());
    assert_eq!(
        (endpoint.hint, endpoint.transport_port),
        (Hint::Opaque, Some(4143))
    );
    assert_eq!(
        endpoint.authority_override.as_deref(),
        Some("web.shop.svc.east:80")
    );
    let labels: Vec<_> = endpoint.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(
        labels,
        [
            ("dst_namespace", "shop"),
            ("dst_pod", "web-1"),
            ("dst_service", "web"),
            ("dst_zone", ""),
        ]
    );
}

/// A policy of opaque bytes with one route.
fn opaque(
    filters: Vec<outbound::opaque_route::Filter>,
    backend: Option<outbound::backend::Kind>,
) -> OutboundPolicy {
    use outbound::opaque_route::{Distribution, RouteBackend, Rule, distribution};
    let backends = backend.into_iter().map(|kind| RouteBackend {
        backend: Some(outbound::Backend {
            metadata: default_meta("backend"),
            queue: None,
            kind: Some(kind),
        }),
        filters: vec![],
    });
    let first = distribution::FirstAvailable {
        backends: backends.collect(),
    };
    let route = outbound::OpaqueRoute {
        metadata: default_meta("route"),
        rules: vec![Rule {
            filters,
            backends: Some(Distribution {
                kind: Some(distribution::Kind::FirstAvailable(first)),
            }),
        }],
    };
    OutboundPolicy {
        metadata: default_meta("parent"),
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(outbound::proxy_protocol::Kind::Opaque(
                outbound::proxy_protocol::Opaque {
                    routes: vec![route],
                },
            )),
        }),
    }
}

#[test]
fn a_policy_forwards_forbids_or_is_refused() {
    use outbound::opaque_route::{Filter, filter::Kind};
    let forward = || {
        Some(outbound::backend::Kind::Forward(WeightedAddr {
            addr: tcp("192.0.2.1:443"),
            ..WeightedAddr::default()
        }))
    };
    let forbidden = Filter {
        kind: Some(Kind::Forbidden(opaque_route::Forbidden {})),
    };
    let summary = |message| {
        let policy = policy(message).map_err(|error| error.to_string())?;
        Ok::<_, String>(match policy.goal {
            Goal::Forward(endpoint) => endpoint.addr.to_string(),
            Goal::Balance(authority) => authority.to_string(),
            Goal::Forbidden(reason) => reason.to_owned(),
        })
    };
    assert_eq!(
        summary(opaque(vec![], forward())).as_deref(),
        Ok("192.0.2.1:443")
    );
    assert_eq!(
        summary(opaque(vec![forbidden], forward())).as_deref(),
        Ok("forbidden")
    );
    assert_eq!(
        summary(opaque(vec![], None)).as_deref(),
        Ok("route without backend")
    );
    let mut nameless = opaque(vec![], forward());
    nameless.metadata = None;
    assert_eq!(summary(nameless), Err("metadata is missing".to_owned()));
    assert_eq!(
        summary(OutboundPolicy::default()),
        Err("protocol is missing".to_owned())
    );
}

fn authz(networks: usize, permit: Option<authn::Permit>) -> Authz {
    let network = || Network {
        net: Some("10.0.0.0/8".parse::<ipnet::IpNet>().unwrap().into()),
        except: vec![],
    };
    Authz {
        networks: (0..networks).map(|_| network()).collect(),
        authentication: permit.map(|permit| Authn {
            permit: Some(permit),
        }),
        labels: HashMap::new(),
        metadata: default_meta("a"),
    }
}

fn http_server(routes: Vec<inbound::HttpRoute>, authorizations: Vec<Authz>) -> inbound::Server {
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol {
            kind: Some(proxy_protocol::Kind::Http1(proxy_protocol::Http1 {
                routes,
                local_rate_limit: None,
            })),
        }),
        authorizations,
        ..inbound::Server::default()
    }
}

#[test]
fn an_authorization_is_taken_whole_or_the_server_is_refused() {
    use authn::{PermitMeshTls, PermitUnauthenticated, permit_mesh_tls as tls};
    let identities = tls::PermitClientIdentities {
        identities: vec![inbound::Identity {
            name: WEB.to_owned(),
        }],
        suffixes: vec![inbound::IdentitySuffix {
            parts: vec!["Shop".to_owned(), "example".to_owned()],
        }],
    };
    let mesh = |clients| Some(authn::Permit::MeshTls(PermitMeshTls { clients }));
    for (permit, expected) in [
        (
            Some(authn::Permit::Unauthenticated(PermitUnauthenticated {})),
            Some(Authentication::Unauthenticated),
        ),
        (
            mesh(Some(tls::Clients::Unauthenticated(
                PermitUnauthenticated {},
            ))),
            Some(Authentication::TlsUnauthenticated),
        ),
        (
            mesh(Some(tls::Clients::Identities(identities))),
            Some(Authentication::Identities {
                exact: vec![WEB.into()],
                suffixes: vec!["shop.example".into()],
            }),
        ),
        (mesh(None), None),
        (None, None),
    ] {
        let server = server(http_server(vec![], vec![authz(1, permit)]), 80).ok();
        let found = server.map(|server| server.authorizations[0].authentication.clone());
        assert_eq!(found, expected);
    }
    let nobody = authz(
        0,
        Some(authn::Permit::Unauthenticated(PermitUnauthenticated {})),
    );
    let server = server(http_server(vec![], vec![nobody]), 80).unwrap();
    let names: Vec<_> = server
        .authorizations
        .iter()
        .map(|one| &*one.meta.name)
        .collect();
    assert_eq!(names, ["localhost"], "without a network it is for nobody");
}

#[test]
fn a_route_that_cannot_be_represented_is_left_out_whole() {
    let path = |kind| http_route::HttpRouteMatch {
        path: Some(http_route::PathMatch { kind: Some(kind) }),
        ..Default::default()
    };
    let rule = |matches| inbound::http_route::Rule {
        matches,
        filters: vec![],
    };
    let route = |name, rules| inbound::HttpRoute {
        metadata: default_meta(name),
        rules,
        ..inbound::HttpRoute::default()
    };
    let get = http_types::HttpMethod::from(http::Method::GET);
    let live = http_route::HttpRouteMatch {
        method: Some(get),
        ..path(http_route::path_match::Kind::Exact("/live".to_owned()))
    };
    let regex = || path(http_route::path_match::Kind::Regex("/a.*".to_owned()));
    let header = http_route::HttpRouteMatch {
        headers: vec![http_route::HeaderMatch::default()],
        ..Default::default()
    };
    let redirect = inbound::http_route::Rule {
        matches: vec![],
        filters: vec![inbound::http_route::Filter { kind: None }],
    };
    let routes = vec![
        route("probe", vec![rule(vec![live, regex()])]),
        route("unknown", vec![rule(vec![regex(), header]), redirect]),
        route("all", vec![rule(vec![])]),
    ];
    let server = server(http_server(routes, vec![]), 80).unwrap();
    let expected = |name: &str, matches| InboundRoute {
        meta: Meta::default_named(name),
        matches,
        authorizations: Arc::from([]),
    };
    let live = MethodAndPath {
        method: Some(http::Method::GET),
        path: Some(PathMatch::Exact("/live".into())),
    };
    assert_eq!(
        *server.routes,
        [expected("probe", vec![live]), expected("all", vec![])]
    );
    assert_eq!(
        (server.protocol, server.meta.port),
        (Protocol::Http1, Some(80))
    );
}
