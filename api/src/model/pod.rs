//! A pod as a node knows it: who it is, whether it is meshed, how it wants to be treated.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{Identity, InvalidIdentity, InvalidPorts, PortSet};
use crate::proto::node::{self as proto, mesh_decision::State};

/// Kubernetes' unique id of a pod; never used again for another pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Unique id.
    pub uid: PodUid,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// ServiceAccount, of the pod's namespace.
    pub service_account: Arc<str>,
    /// What the pod's certificate says.
    pub identity: Identity,
    /// Addresses from the pod's status; empty while the pod starts.
    pub ips: Vec<IpAddr>,
    /// Whether the pod is to be meshed.
    pub mesh: Mesh,
    /// How the pod wants to be treated.
    pub settings: Settings,
    /// Owner as metric label and name, for example `deployment` and `web`; empty for a bare pod.
    pub owner: (Arc<str>, Arc<str>),
}

/// Whether a pod is to be meshed, and if it is not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// It is.
    Meshed,
    /// Nobody asked for it: the reason, for people.
    NotMeshed(String),
    /// It was asked for and cannot be had: the reason, for people.
    Skipped(String),
}

/// What the egress guard does with a meshed pod's connections that evade capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    Off,
    /// Counts and reports them.
    Audit,
    /// Drops, counts and reports them.
    Enforce,
}

/// Per-pod settings: `config.linkerd.io/*` annotations over the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ports of the pod that are not captured.
    pub skip_inbound: PortSet,
    /// Ports of others that are not captured.
    pub skip_outbound: PortSet,
    /// Networks that are not captured, whichever way the connection goes.
    pub skip_subnets: Vec<IpNet>,
    /// Ports of the pod that are proxied as bytes.
    pub opaque: PortSet,
    /// Used until the policy API has answered.
    pub default_inbound_policy: Arc<str>,
    /// Port of the pod that takes mesh TLS with a transport header.
    pub inbound_port: u16,
    /// Port of the pod that serves `/metrics`, `/ready` and `/live`.
    pub admin_port: u16,
    /// How long a connection to an endpoint may take to open.
    pub outbound_connect_timeout: Duration,
    /// How long a connection to the application may take to open.
    pub inbound_connect_timeout: Duration,
    /// How long protocol detection waits for the first bytes.
    pub detect_timeout: Duration,
    /// Ports that the pod's containers declare.
    pub container_ports: Vec<u16>,
    /// What the egress guard does.
    pub guard: Guard,
}

/// Why a pod record cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidPod {
    /// A field that must be there is empty.
    #[error("pod record without {0}")]
    Missing(&'static str),
    /// The identity is none.
    #[error("pod {pod}")]
    Identity {
        /// Namespace and name of the pod.
        pod: String,
        /// What is wrong with it.
        source: InvalidIdentity,
    },
    /// A list of ports is wrong.
    #[error("pod {pod}, {field}")]
    Ports {
        /// Namespace and name of the pod.
        pod: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidPorts,
    },
    /// A value is out of its range or does not parse.
    #[error("pod {pod}, {field}: {value:?} is not valid")]
    Value {
        /// Namespace and name of the pod.
        pod: String,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
}

impl PodUid {
    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pod {
    /// Namespace and name, as people write them.
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Default for Settings {
    /// Linkerd's defaults (its Helm chart), and the guard on.
    fn default() -> Self {
        let ports = |ports: &[u16]| {
            PortSet::from_ranges(ports.iter().map(|port| (*port, *port))).unwrap_or_default()
        };
        Self {
            skip_inbound: ports(&[4567, 4568]),
            skip_outbound: ports(&[4567, 4568]),
            skip_subnets: Vec::new(),
            opaque: ports(&[25, 587, 3306, 4444, 5432, 6379, 9300, 11211]),
            default_inbound_policy: "all-unauthenticated".into(),
            inbound_port: 4143,
            admin_port: 4191,
            outbound_connect_timeout: Duration::from_secs(1),
            inbound_connect_timeout: Duration::from_millis(100),
            detect_timeout: Duration::from_secs(10),
            container_ports: Vec::new(),
            guard: Guard::Enforce,
        }
    }
}

impl TryFrom<proto::Pod> for Pod {
    type Error = InvalidPod;

    fn try_from(pod: proto::Pod) -> Result<Self, Self::Error> {
        for (field, value) in [
            ("uid", &pod.uid),
            ("namespace", &pod.namespace),
            ("name", &pod.name),
        ] {
            if value.is_empty() {
                return Err(InvalidPod::Missing(field));
            }
        }
        let name = format!("{}/{}", pod.namespace, pod.name);
        let identity = pod
            .identity
            .parse()
            .map_err(|source| InvalidPod::Identity {
                pod: name.clone(),
                source,
            })?;
        let ips = parse_all(&name, "ips", &pod.ips)?;
        let mesh = match pod.mesh {
            Some(decision) => match decision.state() {
                State::Meshed => Mesh::Meshed,
                State::Skipped => Mesh::Skipped(decision.reason),
                State::NotMeshed | State::Unspecified => Mesh::NotMeshed(decision.reason),
            },
            None => return Err(InvalidPod::Missing("mesh")),
        };
        let settings = settings(&name, pod.settings.ok_or(InvalidPod::Missing("settings"))?)?;
        Ok(Self {
            uid: PodUid::from(pod.uid.as_str()),
            namespace: pod.namespace.into(),
            name: pod.name.into(),
            service_account: pod.service_account.into(),
            identity,
            ips,
            mesh,
            settings,
            owner: (pod.owner_kind.into(), pod.owner_name.into()),
        })
    }
}

impl From<&Pod> for proto::Pod {
    fn from(pod: &Pod) -> Self {
        let (state, reason) = match &pod.mesh {
            Mesh::Meshed => (State::Meshed, String::new()),
            Mesh::NotMeshed(reason) => (State::NotMeshed, reason.clone()),
            Mesh::Skipped(reason) => (State::Skipped, reason.clone()),
        };
        Self {
            uid: pod.uid.to_string(),
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            service_account: pod.service_account.to_string(),
            identity: pod.identity.to_string(),
            ips: pod.ips.iter().map(ToString::to_string).collect(),
            mesh: Some(proto::MeshDecision {
                state: state.into(),
                reason,
            }),
            settings: Some((&pod.settings).into()),
            owner_kind: pod.owner.0.to_string(),
            owner_name: pod.owner.1.to_string(),
        }
    }
}

impl From<&Settings> for proto::Settings {
    fn from(settings: &Settings) -> Self {
        let duration = |duration: Duration| duration.try_into().ok();
        Self {
            skip_inbound_ports: (&settings.skip_inbound).into(),
            skip_outbound_ports: (&settings.skip_outbound).into(),
            skip_subnets: settings
                .skip_subnets
                .iter()
                .map(ToString::to_string)
                .collect(),
            opaque_ports: (&settings.opaque).into(),
            default_inbound_policy: settings.default_inbound_policy.to_string(),
            inbound_port: settings.inbound_port.into(),
            admin_port: settings.admin_port.into(),
            outbound_connect_timeout: duration(settings.outbound_connect_timeout),
            inbound_connect_timeout: duration(settings.inbound_connect_timeout),
            detect_timeout: duration(settings.detect_timeout),
            container_ports: settings
                .container_ports
                .iter()
                .map(|port| (*port).into())
                .collect(),
            guard: match settings.guard {
                Guard::Off => proto::GuardMode::Off,
                Guard::Audit => proto::GuardMode::Audit,
                Guard::Enforce => proto::GuardMode::Enforce,
            }
            .into(),
        }
    }
}

fn settings(pod: &str, settings: proto::Settings) -> Result<Settings, InvalidPod> {
    let default = Settings::default();
    let ports = |field, ranges: &[proto::PortRange]| {
        PortSet::try_from(ranges).map_err(|source| InvalidPod::Ports {
            pod: pod.to_owned(),
            field,
            source,
        })
    };
    let port = |field, number: u32, default| match number {
        0 => Ok(default),
        _ => u16::try_from(number).map_err(|_error| invalid(pod, field, number)),
    };
    let duration = |field, value: Option<prost_types::Duration>, default| match value {
        None => Ok(default),
        Some(value) => Duration::try_from(value).map_err(|_error| invalid(pod, field, value)),
    };
    let container_ports: Result<Vec<u16>, _> = settings
        .container_ports
        .iter()
        .map(|number| {
            u16::try_from(*number).map_err(|_error| invalid(pod, "container_ports", number))
        })
        .collect();
    Ok(Settings {
        skip_inbound: ports("skip_inbound_ports", &settings.skip_inbound_ports)?,
        skip_outbound: ports("skip_outbound_ports", &settings.skip_outbound_ports)?,
        skip_subnets: parse_all(pod, "skip_subnets", &settings.skip_subnets)?,
        opaque: ports("opaque_ports", &settings.opaque_ports)?,
        guard: match settings.guard() {
            proto::GuardMode::Off => Guard::Off,
            proto::GuardMode::Audit => Guard::Audit,
            proto::GuardMode::Enforce | proto::GuardMode::Unspecified => Guard::Enforce,
        },
        inbound_port: port("inbound_port", settings.inbound_port, default.inbound_port)?,
        admin_port: port("admin_port", settings.admin_port, default.admin_port)?,
        outbound_connect_timeout: duration(
            "outbound_connect_timeout",
            settings.outbound_connect_timeout,
            default.outbound_connect_timeout,
        )?,
        inbound_connect_timeout: duration(
            "inbound_connect_timeout",
            settings.inbound_connect_timeout,
            default.inbound_connect_timeout,
        )?,
        detect_timeout: duration(
            "detect_timeout",
            settings.detect_timeout,
            default.detect_timeout,
        )?,
        container_ports: container_ports?,
        default_inbound_policy: match settings.default_inbound_policy.is_empty() {
            true => default.default_inbound_policy,
            false => settings.default_inbound_policy.into(),
        },
    })
}

fn parse_all<T: std::str::FromStr>(
    pod: &str,
    field: &'static str,
    values: &[String],
) -> Result<Vec<T>, InvalidPod> {
    values
        .iter()
        .map(|value| value.parse().map_err(|_error| invalid(pod, field, value)))
        .collect()
}

fn invalid(pod: &str, field: &'static str, value: impl fmt::Display) -> InvalidPod {
    InvalidPod::Value {
        pod: pod.to_owned(),
        field,
        value: value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod {
            uid: "3f1c".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            service_account: "web".into(),
            identity: "web.shop.serviceaccount.identity.linkerd.cluster.local"
                .parse()
                .unwrap(),
            ips: vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            mesh: Mesh::Meshed,
            settings: Settings {
                skip_subnets: vec!["10.9.0.0/16".parse().unwrap()],
                guard: Guard::Audit,
                ..Settings::default()
            },
            owner: ("deployment".into(), "web".into()),
        }
    }

    #[test]
    fn a_pod_survives_the_wire() {
        assert_eq!(Pod::try_from(proto::Pod::from(&pod())), Ok(pod()));
    }

    #[test]
    fn a_wrong_record_names_pod_and_field() {
        let mut record = proto::Pod::from(&pod());
        record
            .settings
            .as_mut()
            .unwrap()
            .skip_subnets
            .push("10.0.0.0/99".into());
        assert_eq!(
            Pod::try_from(record).unwrap_err().to_string(),
            r#"pod shop/web-1, skip_subnets: "10.0.0.0/99" is not valid"#
        );
    }
}
