//! Whether a pod is to be meshed: the truth table of `linkerd.io/inject`.
//!
//! A namespace that is enabled meshes every pod that does not disable it; in any other namespace
//! a pod must enable it. A value that is none of the three counts as not enabled. What was asked
//! for and cannot be had is *skipped*, which operators see; what nobody asked for is not meshed.

use std::collections::BTreeMap;

use weft_api::model::Mesh;

use super::{Namespace, Pod};

const INJECT: &str = "linkerd.io/inject";
/// Namespaces that a mesh must not depend on itself in.
const NEVER: [&str; 2] = ["cert-manager", "kube-system"];
const SIDECARS: [&str; 5] = ["contour", "envoy", "gloo", "istio-proxy", "linkerd-proxy"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Unset,
    Enabled,
    Disabled,
    Wrong,
}

/// Decides about a pod.
pub(super) fn decide(pod: &Pod, namespace: Option<&Namespace>) -> Mesh {
    let none = BTreeMap::new();
    let space = wish(namespace.map_or(&none, |namespace| &namespace.annotations));
    let own = wish(&pod.annotations);
    let refused = match (space, own) {
        (Wish::Wrong, _) => Some("the namespace's linkerd.io/inject has an unknown value"),
        (_, Wish::Wrong) => Some("the pod's linkerd.io/inject has an unknown value"),
        (_, Wish::Disabled) => Some("the pod disables linkerd.io/inject"),
        (_, Wish::Enabled) | (Wish::Enabled, Wish::Unset) => None,
        (Wish::Disabled, Wish::Unset) => Some("the namespace disables linkerd.io/inject"),
        (Wish::Unset, Wish::Unset) => Some("neither pod nor namespace enables linkerd.io/inject"),
    };
    match refused {
        Some(reason) => Mesh::NotMeshed(reason.to_owned()),
        None => match obstacle(pod, namespace) {
            Some(reason) => Mesh::Skipped(reason),
            None => Mesh::Meshed,
        },
    }
}

/// Says that the annotation has none of its values, if that is so.
pub(super) fn wrong_value(annotations: &BTreeMap<String, String>) -> Option<String> {
    (wish(annotations) == Wish::Wrong).then(|| {
        format!(
            "{INJECT}: {:?} is not \"enabled\", \"ingress\" or \"disabled\"; counts as not enabled",
            annotations.get(INJECT).map_or("", String::as_str)
        )
    })
}

fn wish(annotations: &BTreeMap<String, String>) -> Wish {
    match annotations.get(INJECT).map(String::as_str) {
        None | Some("") => Wish::Unset,
        Some("enabled" | "ingress") => Wish::Enabled,
        Some("disabled") => Wish::Disabled,
        Some(_) => Wish::Wrong,
    }
}

fn obstacle(pod: &Pod, namespace: Option<&Namespace>) -> Option<String> {
    let admission = namespace
        .and_then(|namespace| {
            let label = "config.linkerd.io/admission-webhooks";
            namespace.labels.get(label)
        })
        .map(String::as_str);
    let name = &*pod.name.namespace;
    let sidecar = pod
        .containers
        .iter()
        .map(|container| container.name.as_str())
        .find(|name| SIDECARS.contains(name));
    let control_plane = [
        "linkerd.io/control-plane-component",
        "linkerd.io/cni-resource",
    ];
    if pod.host_network {
        Some("hostNetwork is enabled: the pod has no network of its own".to_owned())
    } else if let Some(sidecar) = sidecar {
        Some(format!("the pod has a sidecar proxy already: {sidecar}"))
    } else if NEVER.contains(&name) {
        Some(format!("pods of namespace {name} are never meshed"))
    } else if admission == Some("disabled") {
        Some("the namespace has label config.linkerd.io/admission-webhooks=disabled".to_owned())
    } else if let Some(label) = control_plane
        .iter()
        .find(|label| pod.labels.contains_key(**label))
    {
        Some(format!("the pod has label {label}"))
    } else if pod.service_account.contains('.') {
        Some(format!(
            "ServiceAccount {} has a dot in its name and can have no identity",
            pod.service_account
        ))
    } else {
        None
    }
}
