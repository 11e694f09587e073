//! Parts of a pod's manifest. What cannot be used is left out and reported.

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::digest;
use k8s_openapi::{
    api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    apimachinery::pkg::util::intstr::IntOrString,
};
use weft_api::model::PodUid;

use super::{Container, ContainerPort, NsName, Phase, Probe};

/// A port number of the API, where it is signed and 32 bits wide.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

pub(super) fn uid(name: &NsName, given: Option<&str>, problems: &mut Vec<String>) -> PodUid {
    let is_plain = |uid: &str| {
        (1..=63).contains(&uid.len())
            && uid
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match given {
        Some(uid) if is_plain(uid) => return PodUid::from(uid),
        Some(uid) => problems.push(format!(
            "metadata.uid: {uid:?} is not 1 to 63 letters, digits and hyphens; one is made"
        )),
        None => {}
    }
    // Nodes name files and pins by it, so it must be plain, and the same after a restart.
    let text = format!("weft/pod/{}/{}", name.namespace, name.name);
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let hex: String = hash.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    PodUid::from(parts.join("-").as_str())
}

pub(super) fn addresses<'a>(
    list: impl Iterator<Item = &'a str>,
    first: Option<&'a str>,
    field: &str,
    problems: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in list.chain(first).filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(ip) if found.contains(&ip) => {}
            Ok(ip) if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() => {
                problems.push(format!(
                    "{field}: {ip} cannot be a pod's or a node's address"
                ));
            }
            Ok(ip) => found.push(ip),
            Err(_) => problems.push(format!("{field}: {text:?} is not an IP address")),
        }
    }
    found
}

pub(super) fn phase(text: Option<&str>, problems: &mut Vec<String>) -> Phase {
    match text {
        None | Some("" | "Running") => Phase::Running,
        Some("Pending") => Phase::Pending,
        Some("Succeeded" | "Failed") => Phase::Ended,
        Some("Unknown") => Phase::Unknown,
        Some(other) => {
            problems.push(format!(
                "status.phase: {other:?} is no phase; counts as Unknown"
            ));
            Phase::Unknown
        }
    }
}

pub(super) fn containers(spec: &v1::PodSpec, problems: &mut Vec<String>) -> Vec<Container> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let read = |container: &v1::Container| {
        let ports = container.ports.as_deref().unwrap_or_default();
        let tcp =
            |port: &&v1::ContainerPort| matches!(port.protocol.as_deref(), None | Some("TCP"));
        let ports = ports.iter().filter(tcp).filter_map(|port| {
            let number = port_number(port.container_port);
            if number.is_none() {
                problems.push(format!(
                    "container {}: containerPort {} is not a port (1 to 65535)",
                    container.name, port.container_port
                ));
            }
            Some(ContainerPort {
                name: port.name.clone(),
                number: number?,
                host_port: port.host_port.and_then(port_number),
            })
        });
        Container {
            name: container.name.clone(),
            ports: ports.collect(),
        }
    };
    spec.containers.iter().chain(init).map(read).collect()
}

pub(super) fn probes(
    containers: &[v1::Container],
    init: &Option<Vec<v1::Container>>,
    problems: &mut Vec<String>,
) -> Vec<Probe> {
    let mut found = Vec::new();
    for container in containers.iter().chain(init.iter().flatten()) {
        let all = [
            &container.liveness_probe,
            &container.readiness_probe,
            &container.startup_probe,
        ];
        for get in all
            .into_iter()
            .flatten()
            .filter_map(|probe| probe.http_get.as_ref())
        {
            let named = |name: &String| {
                let ports = container.ports.iter().flatten();
                let mut ports = ports.filter(|port| port.name.as_ref() == Some(name));
                ports.next().map(|port| port.container_port)
            };
            let number = match &get.port {
                IntOrString::Int(number) => Some(*number),
                IntOrString::String(text) => named(text).or_else(|| text.parse().ok()),
            };
            let Some(port) = number.and_then(port_number) else {
                problems.push(format!(
                    "container {}: its probe goes to a port that does not exist: {:?}",
                    container.name, get.port
                ));
                continue;
            };
            let path = get.path.as_deref().unwrap_or("/");
            let path = path.split_once('?').map_or(path, |(path, _query)| path);
            let slash = if path.starts_with('/') { "" } else { "/" };
            found.push(Probe {
                port,
                path: format!("{slash}{path}"),
            });
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Owner as dashboards know it: a ReplicaSet that a Deployment made counts as the Deployment.
pub(super) fn owner(metadata: &ObjectMeta) -> (Arc<str>, Arc<str>) {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners
        .iter()
        .find(|owner| owner.controller == Some(true))
        .or_else(|| owners.first())
    else {
        return ("".into(), "".into());
    };
    let hash = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(name) => ("deployment".into(), name.into()),
        None => {
            let kind = match owner.kind.as_str() {
                // `job` is taken: Prometheus sets it on every series.
                "Job" => "k8s_job".to_owned(),
                kind => kind.to_lowercase(),
            };
            (kind.into(), owner.name.as_str().into())
        }
    }
}
