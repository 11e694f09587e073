//! Who may pass: the first authorization whose network and authentication both fit lets a client in.
//!
//! The pod itself is let in by an authorization named `localhost` that every server carries;
//! kubelet's probes by one on the route for their paths. Nothing fits: denied, and the reason is
//! the one that came nearest to passing.

use std::net::IpAddr;

use weft_api::model::Identity;

use crate::discovery::model::{Authentication, Authorization, NetworkMatch};

/// What a client has proven about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof<'peer> {
    /// Nothing: the connection is not mesh TLS.
    Plain,
    /// Mesh TLS, with the identity of its certificate if it showed one.
    Tls(Option<&'peer Identity>),
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision<'policy> {
    /// Let in by this authorization.
    Allow(&'policy Authorization),
    /// Not let in.
    Deny(Reason),
}

/// Why a client is denied, in the order of how near it came to passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Nobody may pass.
    NoAuthorization,
    /// No authorization is for the client's address.
    Network,
    /// The client would have to come over mesh TLS.
    NoTls,
    /// The client would have to show a certificate.
    NoIdentity,
    /// The client's identity is not among those that may pass.
    WrongIdentity,
}

impl Reason {
    /// Name of the reason in logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoAuthorization => "no_authorization",
            Self::Network => "network",
            Self::NoTls => "no_tls",
            Self::NoIdentity => "no_identity",
            Self::WrongIdentity => "wrong_identity",
        }
    }
}

/// Decides whether a client with this address and proof may pass.
pub fn authorize<'policy>(
    client: IpAddr,
    proof: Proof<'_>,
    authorizations: impl IntoIterator<Item = &'policy Authorization>,
) -> Decision<'policy> {
    let client = client.to_canonical();
    let mut nearest = Reason::NoAuthorization;
    for authorization in authorizations {
        match check(client, proof, authorization) {
            Ok(()) => return Decision::Allow(authorization),
            Err(reason) => nearest = nearest.max(reason),
        }
    }
    Decision::Deny(nearest)
}

fn check(client: IpAddr, proof: Proof<'_>, authorization: &Authorization) -> Result<(), Reason> {
    let in_network = |network: &NetworkMatch| {
        network.net.contains(&client) && !network.except.iter().any(|hole| hole.contains(&client))
    };
    if !authorization.networks.iter().any(in_network) {
        return Err(Reason::Network);
    }
    match (&authorization.authentication, proof) {
        (Authentication::Unauthenticated, _)
        | (Authentication::TlsUnauthenticated, Proof::Tls(_)) => Ok(()),
        (_, Proof::Plain) => Err(Reason::NoTls),
        (Authentication::Identities { .. }, Proof::Tls(None)) => Err(Reason::NoIdentity),
        (Authentication::Identities { exact, suffixes }, Proof::Tls(Some(identity))) => {
            let is_named = exact.iter().any(|name| &**name == identity.as_str())
                || suffixes.iter().any(|suffix| is_below(identity, suffix));
            is_named.then_some(()).ok_or(Reason::WrongIdentity)
        }
    }
}

/// Whether a DNS-like identity lies below a suffix, by whole labels; the empty one holds all.
fn is_below(identity: &Identity, suffix: &str) -> bool {
    if suffix.is_empty() {
        return true;
    }
    match identity {
        Identity::Dns(name) => name
            .strip_suffix(suffix)
            .is_some_and(|rest| rest.ends_with('.')),
        Identity::Spiffe(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::discovery::model::Meta;

    const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

    fn authorization(net: &str, except: &[&str], authentication: Authentication) -> Authorization {
        Authorization {
            meta: Meta::default_named("test"),
            networks: vec![NetworkMatch {
                net: net.parse().unwrap(),
                except: except.iter().map(|net| net.parse().unwrap()).collect(),
            }],
            authentication,
        }
    }

    fn identities(exact: &[&str], suffixes: &[&str]) -> Authentication {
        let all = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        Authentication::Identities {
            exact: all(exact),
            suffixes: all(suffixes),
        }
    }

    #[test]
    fn clients_pass_by_network_and_authentication_together() {
        let web: Identity = WEB.parse().unwrap();
        let vm: Identity = "spiffe://td/vm".parse().unwrap();
        let (plain, tls, web, vm) = (
            Proof::Plain,
            Proof::Tls(None),
            Proof::Tls(Some(&web)),
            Proof::Tls(Some(&vm)),
        );
        let any = || Authentication::Unauthenticated;
        for (net, authentication, proof, expected) in [
            ("0.0.0.0/0", any(), plain, Ok(())),
            ("10.0.0.0/8", any(), plain, Ok(())),
            ("192.168.0.0/16", any(), web, Err(Reason::Network)),
            ("::/0", any(), web, Err(Reason::Network)),
            ("0.0.0.0/0", Authentication::TlsUnauthenticated, tls, Ok(())),
            (
                "0.0.0.0/0",
                Authentication::TlsUnauthenticated,
                plain,
                Err(Reason::NoTls),
            ),
            ("0.0.0.0/0", identities(&[WEB], &[]), web, Ok(())),
            (
                "0.0.0.0/0",
                identities(&[WEB], &[]),
                plain,
                Err(Reason::NoTls),
            ),
            (
                "0.0.0.0/0",
                identities(&[WEB], &[]),
                tls,
                Err(Reason::NoIdentity),
            ),
            (
                "0.0.0.0/0",
                identities(&[WEB], &[]),
                vm,
                Err(Reason::WrongIdentity),
            ),
            (
                "0.0.0.0/0",
                identities(&[], &["cluster.local"]),
                web,
                Ok(()),
            ),
            (
                "0.0.0.0/0",
                identities(&[], &["uster.local"]),
                web,
                Err(Reason::WrongIdentity),
            ),
            ("0.0.0.0/0", identities(&[], &[""]), vm, Ok(())),
            (
                "0.0.0.0/0",
                identities(&[], &["td/vm"]),
                vm,
                Err(Reason::WrongIdentity),
            ),
            (
                "0.0.0.0/0",
                identities(&["spiffe://td/vm"], &[]),
                vm,
                Ok(()),
            ),
        ] {
            let policy = [authorization(net, &[], authentication)];
            let expected = match expected {
                Ok(()) => Decision::Allow(&policy[0]),
                Err(reason) => Decision::Deny(reason),
            };
            for client in ["10.1.2.3", "::ffff:10.1.2.3"] {
                let found = authorize(client.parse().unwrap(), proof, &policy);
                assert_eq!(found, expected, "{net} {proof:?} {policy:?}");
            }
        }
    }

    #[test]
    fn holes_of_a_network_do_not_pass_and_the_nearest_reason_is_given() {
        let client = "10.1.2.3".parse().unwrap();
        let hole = authorization(
            "10.0.0.0/8",
            &["10.1.2.0/24"],
            Authentication::Unauthenticated,
        );
        let denied = authorize(client, Proof::Plain, [&hole]);
        assert_eq!(denied, Decision::Deny(Reason::Network));
        let needs_identity = authorization("0.0.0.0/0", &[], identities(&[WEB], &[]));
        let denied = authorize(client, Proof::Tls(None), [&needs_identity, &hole]);
        assert_eq!(denied, Decision::Deny(Reason::NoIdentity));
        let denied = authorize(client, Proof::Plain, []);
        assert_eq!(denied, Decision::Deny(Reason::NoAuthorization));
    }
}
