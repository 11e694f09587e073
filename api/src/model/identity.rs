//! The name of a service account in a trust domain, as proven by a certificate.

use std::{fmt, str::FromStr, sync::Arc};

/// A workload's identity: a DNS-like name (Kubernetes) or a SPIFFE ID (other machines).
///
/// Cheap to clone. Two identities are equal if their text is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// `<serviceaccount>.<namespace>.serviceaccount.identity.<control plane>.<trust domain>`
    Dns(Arc<str>),
    /// `spiffe://<trust domain>/<path>`
    Spiffe(Arc<str>),
}

/// Why a text is no identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidIdentity {
    /// Nothing was given.
    #[error("identity is empty")]
    Empty,
    /// The text is no DNS name: labels of 1 to 63 letters, digits and hyphens, 253 in all.
    #[error("identity {0:?} is neither a DNS name nor a SPIFFE ID")]
    Name(String),
    /// The text begins with `spiffe://` and has no trust domain or path.
    #[error("identity {0:?} is not spiffe://<trust domain>/<path>")]
    Spiffe(String),
}

impl Identity {
    /// Makes the DNS-like identity of a Kubernetes ServiceAccount.
    ///
    /// # Errors
    /// When a part is no DNS name: a ServiceAccount whose name holds a dot parses, one with a
    /// slash or an empty name does not.
    pub fn of_service_account(
        service_account: &str,
        namespace: &str,
        control_plane_namespace: &str,
        trust_domain: &str,
    ) -> Result<Self, InvalidIdentity> {
        format!(
            "{service_account}.{namespace}.serviceaccount.identity.{control_plane_namespace}.{trust_domain}"
        )
        .parse()
    }

    /// The identity as it stands in a certificate.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Spiffe(name) => name,
        }
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidIdentity::Empty);
        }
        if let Some(rest) = text.strip_prefix("spiffe://") {
            let valid = rest.split_once('/').is_some_and(|(domain, path)| {
                is_dns_name(domain) && !path.is_empty() && path.is_ascii()
            });
            return if valid {
                Ok(Self::Spiffe(text.into()))
            } else {
                Err(InvalidIdentity::Spiffe(text.to_owned()))
            };
        }
        if is_dns_name(text) {
            Ok(Self::Dns(text.into()))
        } else {
            Err(InvalidIdentity::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_dns_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_parse_or_say_why_not() {
        for (text, expected) in [
            (
                "web.shop.serviceaccount.identity.linkerd.cluster.local",
                Ok(()),
            ),
            ("spiffe://root.linkerd.cluster.local/vm-1", Ok(())),
            ("", Err(InvalidIdentity::Empty)),
            ("a..b", Err(InvalidIdentity::Name("a..b".into()))),
            ("web.", Err(InvalidIdentity::Name("web.".into()))),
            (
                "spiffe://td",
                Err(InvalidIdentity::Spiffe("spiffe://td".into())),
            ),
            (
                "spiffe:///x",
                Err(InvalidIdentity::Spiffe("spiffe:///x".into())),
            ),
        ] {
            assert_eq!(text.parse::<Identity>().map(|_| ()), expected, "{text:?}");
        }
    }
}
