//! Who may connect to a port of a pod, and what is spoken there: `InboundServerPolicies`.
//!
//! Until policy objects are known to the index, every port has a default server, named by its
//! policy.

use std::{collections::HashMap, time::Duration};

use ipnet::IpNet;
use linkerd2_proxy_api::{
    http_route::{HttpRouteMatch, PathMatch, path_match},
    http_types::{HttpMethod, http_method},
    inbound::{
        Authn, Authz, HttpRoute, IdentitySuffix, Network, ProxyProtocol, Server,
        authn::{
            Permit, PermitMeshTls, PermitUnauthenticated,
            permit_mesh_tls::{Clients, PermitClientIdentities},
        },
        http_route::Rule,
        proxy_protocol,
    },
};
use tonic::Code;

use super::{Refused, default_meta, duration};
use crate::index::{Cluster, DefaultPolicy, Index, NsName, Pod};

/// A port whose policy is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InboundPort {
    /// The pod.
    pub pod: NsName,
    /// Its port.
    pub port: u16,
}

impl InboundPort {
    /// Answers from the index.
    ///
    /// # Errors
    /// Refuses pods that do not exist.
    pub fn translate(&self, index: &Index) -> Result<Server, Refused> {
        let pod = index.find_pod(&self.pod).filter(|pod| pod.is_running());
        let pod = pod.ok_or_else(|| {
            Refused::new(
                Code::NotFound,
                format!("unknown server: pod {} not found", self.pod),
            )
        })?;
        Ok(default_server(pod, self.port, index.cluster()))
    }
}

fn default_server(pod: &Pod, port: u16, cluster: &Cluster) -> Server {
    let defaults = &pod.settled.inbound;
    let policy = match defaults.require_identity.contains(port) {
        true => defaults.policy.authenticated(),
        false => defaults.policy,
    };
    let kind = match pod.settled.settings.opaque.contains(port) {
        true => proxy_protocol::Kind::Opaque(proxy_protocol::Opaque {}),
        false => proxy_protocol::Kind::Detect(proxy_protocol::Detect {
            timeout: duration(detect_timeout(pod)),
            http_routes: routes(pod, port, cluster),
            http_local_rate_limit: None,
        }),
    };
    Server {
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
        server_ips: Vec::new(),
        authorizations: authorizations(policy, cluster),
        labels: labels(policy.as_str()),
    }
}

const fn detect_timeout(pod: &Pod) -> Duration {
    pod.settled.settings.detect_timeout
}

fn authorizations(policy: DefaultPolicy, cluster: &Cluster) -> Vec<Authz> {
    let unauthenticated = || Permit::Unauthenticated(PermitUnauthenticated {});
    let authenticated = || {
        Permit::MeshTls(PermitMeshTls {
            clients: Some(Clients::Identities(PermitClientIdentities {
                identities: Vec::new(),
                // The empty suffix: every identity.
                suffixes: vec![IdentitySuffix { parts: Vec::new() }],
            })),
        })
    };
    let (networks, permit) = match policy {
        DefaultPolicy::Deny => return Vec::new(),
        DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => (None, unauthenticated()),
        DefaultPolicy::AllAuthenticated => (None, authenticated()),
        DefaultPolicy::ClusterUnauthenticated => (Some(&cluster.networks), unauthenticated()),
        DefaultPolicy::ClusterAuthenticated => (Some(&cluster.networks), authenticated()),
    };
    let networks = match networks {
        Some(networks) => networks.iter().copied().map(network).collect(),
        None => everywhere(),
    };
    vec![authz(policy.as_str(), networks, permit)]
}

/// Probes come without an identity; the routes let them pass whatever the policy is.
fn routes(pod: &Pod, port: u16, cluster: &Cluster) -> Vec<HttpRoute> {
    let probes: Vec<_> = pod
        .probes
        .iter()
        .filter(|probe| probe.port == port)
        .map(|probe| HttpRouteMatch {
            path: Some(PathMatch {
                kind: Some(path_match::Kind::Exact(probe.path.clone())),
            }),
            method: Some(HttpMethod {
                r#type: Some(http_method::Type::Registered(
                    http_method::Registered::Get.into(),
                )),
            }),
            ..HttpRouteMatch::default()
        })
        .collect();
    let networks = cluster.probe_networks.iter().copied().map(network);
    let permit = Permit::Unauthenticated(PermitUnauthenticated {});
    let probe = (!probes.is_empty()).then(|| HttpRoute {
        metadata: Some(default_meta("probe")),
        hosts: Vec::new(),
        authorizations: vec![authz("probe", networks.collect(), permit)],
        rules: vec![Rule {
            matches: probes,
            filters: Vec::new(),
        }],
    });
    let rest = HttpRoute {
        metadata: Some(default_meta("default")),
        hosts: Vec::new(),
        authorizations: Vec::new(),
        rules: vec![Rule {
            matches: vec![HttpRouteMatch {
                path: Some(PathMatch {
                    kind: Some(path_match::Kind::Prefix("/".to_owned())),
                }),
                ..HttpRouteMatch::default()
            }],
            filters: Vec::new(),
        }],
    };
    probe.into_iter().chain([rest]).collect()
}

fn authz(name: &str, networks: Vec<Network>, permit: Permit) -> Authz {
    Authz {
        networks,
        authentication: Some(Authn {
            permit: Some(permit),
        }),
        labels: labels(name),
        metadata: Some(default_meta(name)),
    }
}

fn labels(name: &str) -> HashMap<String, String> {
    [("group", ""), ("kind", "default"), ("name", name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn network(net: IpNet) -> Network {
    Network {
        net: Some(net.into()),
        except: Vec::new(),
    }
}

fn everywhere() -> Vec<Network> {
    let all = [
        IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(ipnet::Ipv6Net::default()),
    ];
    all.into_iter().map(network).collect()
}
