//! A pod's settings: annotations of the pod over those of its namespace over the defaults.
//!
//! A value that cannot be read is reported and the default stands in its place.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use weft_api::model::{Guard, PortSet, Settings};

use super::{Cluster, Namespace, Pod, PortList};

/// What happens to connections that no policy mentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Everyone may connect.
    AllUnauthenticated,
    /// Everyone with an identity may connect.
    AllAuthenticated,
    /// Everyone in the cluster's networks may connect.
    ClusterUnauthenticated,
    /// Everyone in the cluster's networks with an identity may connect.
    ClusterAuthenticated,
    /// Nobody may connect.
    Deny,
    /// Everyone may connect; what `deny` would refuse is logged.
    Audit,
}

/// Why a text is no default policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is no default inbound policy; use all-unauthenticated, all-authenticated, \
     cluster-unauthenticated, cluster-authenticated, deny or audit"
)]
pub struct InvalidDefaultPolicy(String);

/// What decides about a pod's inbound connections as long as no policy object does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundDefaults {
    /// The policy.
    pub policy: DefaultPolicy,
    /// Ports on which clients must have an identity whatever the policy is.
    pub require_identity: PortSet,
}

/// One year: what Linkerd calls detection without a time-out.
const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl DefaultPolicy {
    /// The policy as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }

    /// The policy with an identity required.
    #[must_use]
    pub const fn authenticated(self) -> Self {
        match self {
            Self::AllUnauthenticated | Self::AllAuthenticated | Self::Audit => {
                Self::AllAuthenticated
            }
            Self::ClusterUnauthenticated | Self::ClusterAuthenticated => Self::ClusterAuthenticated,
            Self::Deny => Self::Deny,
        }
    }
}

impl FromStr for DefaultPolicy {
    type Err = InvalidDefaultPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [
            Self::AllUnauthenticated,
            Self::AllAuthenticated,
            Self::ClusterUnauthenticated,
            Self::ClusterAuthenticated,
            Self::Deny,
            Self::Audit,
        ]
        .into_iter()
        .find(|policy| policy.as_str() == text)
        .ok_or_else(|| InvalidDefaultPolicy(text.to_owned()))
    }
}

/// Parses `300ms`, `1.5s`, `1m30s`, `24h`, `7d` or `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = tail;
    }
    (!text.trim().is_empty()).then_some(total)
}

/// Reads the settings of a pod, and what is wrong with its annotations.
pub(super) fn read(
    pod: &Pod,
    namespace: Option<&Namespace>,
    cluster: &Cluster,
) -> (Settings, InboundDefaults, Vec<String>) {
    let mut reader = Reader {
        pod: &pod.annotations,
        namespace: namespace.map(|namespace| &namespace.annotations),
        problems: Vec::new(),
    };
    let default = &cluster.settings;
    let policy = reader.policy();
    let inbound = InboundDefaults {
        policy: policy.unwrap_or(cluster.default_inbound_policy),
        require_identity: reader
            .ports(pod, "proxy-require-identity-inbound-ports")
            .unwrap_or_default(),
    };
    let no_detect_timeout = ["inbound", "outbound"].map(|direction| {
        let key = format!("config.linkerd.io/proxy-disable-{direction}-protocol-detect-timeout");
        reader.parsed(&key, "", str::parse).unwrap_or(false)
    });
    let settings = Settings {
        skip_inbound: or(
            reader.ports(pod, "skip-inbound-ports"),
            &default.skip_inbound,
        ),
        // Names are of the pod's own ports and say nothing about others'.
        skip_outbound: or(
            reader.parsed("config.linkerd.io/skip-outbound-ports", "", str::parse),
            &default.skip_outbound,
        ),
        skip_subnets: or(
            reader.parsed("config.linkerd.io/skip-subnets", " (use CIDRs)", networks),
            &default.skip_subnets,
        ),
        opaque: or(reader.ports(pod, "opaque-ports"), &default.opaque),
        default_inbound_policy: inbound.policy.as_str().into(),
        inbound_port: reader.port("inbound-port", default.inbound_port),
        admin_port: reader.port("admin-port", default.admin_port),
        outbound_connect_timeout: reader.duration(
            "proxy-outbound-connect-timeout",
            default.outbound_connect_timeout,
        ),
        inbound_connect_timeout: reader.duration(
            "proxy-inbound-connect-timeout",
            default.inbound_connect_timeout,
        ),
        detect_timeout: match no_detect_timeout.contains(&true) {
            true => NO_TIMEOUT,
            false => default.detect_timeout,
        },
        container_ports: pod.container_ports(),
        guard: reader
            .parsed("weft.dev/guard", "", guard)
            .unwrap_or(default.guard),
    };
    (settings, inbound, reader.problems)
}

struct Reader<'a> {
    pod: &'a BTreeMap<String, String>,
    namespace: Option<&'a BTreeMap<String, String>>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn find(&self, key: &str) -> Option<&str> {
        let own = self.pod.get(key);
        own.or_else(|| self.namespace?.get(key)).map(String::as_str)
    }

    fn parsed<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.find(key)?;
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(error) => {
                let problem = format!("{key}: {error}{hint}; the default is used");
                self.problems.push(problem);
                None
            }
        }
    }

    /// The default inbound policy. One that cannot be read was meant to restrict, so nobody may
    /// connect: the cluster's default may be wider than what was asked.
    fn policy(&mut self) -> Option<DefaultPolicy> {
        let key = "config.linkerd.io/default-inbound-policy";
        match self.find(key)?.trim().parse() {
            Ok(policy) => Some(policy),
            Err(error) => {
                let problem = format!("{key}: {error}; nobody may connect until it is corrected");
                self.problems.push(problem);
                Some(DefaultPolicy::Deny)
            }
        }
    }

    fn ports(&mut self, pod: &Pod, name: &str) -> Option<PortSet> {
        let key = format!("config.linkerd.io/{name}");
        let list = self.parsed(&key, "", PortList::parse)?;
        let (ports, unknown) = list.resolve(|name| pod.find_port(name));
        for name in unknown {
            let problem = format!("{key}: no container of the pod has a port named {name:?}");
            self.problems.push(problem);
        }
        Some(ports)
    }

    fn port(&mut self, name: &str, default: u16) -> u16 {
        let key = format!("config.linkerd.io/{name}");
        let parse = |text: &str| match text.parse() {
            Ok(port) if port != 0 => Ok(port),
            Ok(_) | Err(_) => Err(format!("{text:?} is not a port (1 to 65535)")),
        };
        self.parsed(&key, "", parse).unwrap_or(default)
    }

    fn duration(&mut self, name: &str, default: Duration) -> Duration {
        let key = format!("config.linkerd.io/{name}");
        let parse = |text: &str| {
            parse_duration(text)
                .filter(|duration| !duration.is_zero())
                .ok_or_else(|| format!("{text:?} is not a duration such as 100ms or 5s"))
        };
        self.parsed(&key, "", parse).unwrap_or(default)
    }
}

fn or<T: Clone>(value: Option<T>, default: &T) -> T {
    value.unwrap_or_else(|| default.clone())
}

fn networks(text: &str) -> Result<Vec<ipnet::IpNet>, ipnet::AddrParseError> {
    let items = text.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(|item| match item.parse::<std::net::IpAddr>() {
            Ok(ip) => Ok(ip.into()),
            Err(_) => item.parse(),
        })
        .collect()
}

fn guard(text: &str) -> Result<Guard, String> {
    match text {
        "off" => Ok(Guard::Off),
        "audit" => Ok(Guard::Audit),
        "enforce" => Ok(Guard::Enforce),
        _ => Err(format!("{text:?} is not off, audit or enforce")),
    }
}
