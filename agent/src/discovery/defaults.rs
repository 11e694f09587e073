//! What holds for a pod's port when the controller has not said anything. Pure.

use std::sync::Arc;

use ipnet::IpNet;
use weft_api::model::Settings;

use super::model::{
    Authentication, Authorization, InboundRoute, InboundServer, Meta, NetworkMatch, Protocol,
};

/// The pod's default policy for a port.
///
/// A policy whose name is not known lets nobody in: it is never wider than what was asked.
pub(super) fn server(settings: &Settings, port: u16, cluster_networks: &[IpNet]) -> InboundServer {
    let name = &*settings.default_inbound_policy;
    let any_identity = || Authentication::Identities {
        exact: Vec::new(),
        suffixes: vec!["".into()],
    };
    let open = match name {
        "all-unauthenticated" | "audit" => Some((everywhere(), Authentication::Unauthenticated)),
        "all-authenticated" => Some((everywhere(), any_identity())),
        "all-tls-unauthenticated" => Some((everywhere(), Authentication::TlsUnauthenticated)),
        "cluster-unauthenticated" => {
            Some((within(cluster_networks), Authentication::Unauthenticated))
        }
        "cluster-authenticated" => Some((within(cluster_networks), any_identity())),
        _ => None,
    };
    let protocol = match open {
        Some(_) if !settings.opaque.contains(port) => Protocol::Detect,
        _ => Protocol::Opaque,
    };
    let mut authorizations = Vec::new();
    authorizations.extend(open.map(|(networks, authentication)| Authorization {
        meta: Meta::default_named(name),
        networks,
        authentication,
    }));
    authorizations.push(localhost());
    InboundServer {
        protocol,
        detect_timeout: settings.detect_timeout,
        meta: Meta {
            port: Some(port),
            ..Meta::default_named(name)
        },
        authorizations: authorizations.into(),
        routes: Arc::from([route()]),
    }
}

/// Every server lets the pod itself in.
pub(super) fn localhost() -> Authorization {
    let loopback = [IpNet::V4(LOOPBACK_V4), IpNet::V6(LOOPBACK_V6)];
    Authorization {
        meta: Meta::default_named("localhost"),
        networks: within(&loopback),
        authentication: Authentication::Unauthenticated,
    }
}

const LOOPBACK_V4: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::LOCALHOST, 32);
const LOOPBACK_V6: ipnet::Ipv6Net = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);

/// The route that every request takes where no route is attached.
pub(super) fn route() -> InboundRoute {
    InboundRoute {
        meta: Meta::default_named("default"),
        matches: Vec::new(),
        authorizations: Arc::from([]),
    }
}

fn everywhere() -> Vec<NetworkMatch> {
    within(&[
        IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(ipnet::Ipv6Net::default()),
    ])
}

fn within(networks: &[IpNet]) -> Vec<NetworkMatch> {
    networks
        .iter()
        .map(|net| NetworkMatch {
            net: *net,
            except: Vec::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_policy_is_never_wider_than_its_name() {
        let cluster = ["10.0.0.0/8".parse().unwrap()];
        let any = || Authentication::Identities {
            exact: vec![],
            suffixes: vec!["".into()],
        };
        for (name, expected) in [
            (
                "all-unauthenticated",
                Some((2, Authentication::Unauthenticated)),
            ),
            ("all-authenticated", Some((2, any()))),
            (
                "all-tls-unauthenticated",
                Some((2, Authentication::TlsUnauthenticated)),
            ),
            (
                "cluster-unauthenticated",
                Some((1, Authentication::Unauthenticated)),
            ),
            ("cluster-authenticated", Some((1, any()))),
            ("audit", Some((2, Authentication::Unauthenticated))),
            ("deny", None),
            ("misspelt", None),
        ] {
            let settings = Settings {
                default_inbound_policy: name.into(),
                ..Settings::default()
            };
            let server = server(&settings, 8080, &cluster);
            let found = match &*server.authorizations {
                [first, _localhost] => Some((first.networks.len(), first.authentication.clone())),
                _ => None,
            };
            assert_eq!(found, expected, "{name}");
            assert_eq!(
                server.protocol == Protocol::Opaque,
                expected.is_none(),
                "{name}"
            );
        }
    }

    #[test]
    fn opaque_ports_are_opaque_before_the_first_answer() {
        let server = |port| server(&Settings::default(), port, &[]).protocol;
        assert_eq!(
            (server(5432), server(80)),
            (Protocol::Opaque, Protocol::Detect)
        );
    }
}
