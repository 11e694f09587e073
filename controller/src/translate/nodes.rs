//! The pods of a node: `weft.node.v1`'s `WatchPods`.

use std::{collections::BTreeMap, sync::Arc};

use weft_api::{model, proto::node as proto};

use super::Refused;
use crate::index::{Index, Pod};

/// A node whose pods are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodePods(pub Arc<str>);

/// Pods by their uid.
pub type PodMap = BTreeMap<String, proto::Pod>;

impl NodePods {
    /// Answers from the index. A node that nobody has heard of has no pods.
    ///
    /// # Errors
    /// None; the result has the shape of every translation.
    pub fn translate(&self, index: &Index) -> Result<PodMap, Refused> {
        let mut pods = PodMap::new();
        for pod in index.pods_of_node(&self.0).filter_map(record) {
            // Two pods of one uid are a mistake that is reported; the first by name counts.
            let entry = pods.entry(pod.uid.to_string());
            entry.or_insert_with(|| proto::Pod::from(&pod));
        }
        Ok(pods)
    }
}

/// The record of a pod; none for a pod whose names make no identity, which is reported elsewhere.
fn record(pod: &Pod) -> Option<model::Pod> {
    Some(model::Pod {
        uid: pod.uid.clone(),
        namespace: Arc::clone(&pod.name.namespace),
        name: Arc::clone(&pod.name.name),
        service_account: Arc::clone(&pod.service_account),
        identity: pod.settled.identity.clone()?,
        // In the host's network the addresses are the node's, not the pod's.
        ips: match pod.host_network {
            true => Vec::new(),
            false => pod.ips.clone(),
        },
        mesh: pod.settled.mesh.clone(),
        settings: pod.settled.settings.clone(),
        owner: pod.owner.clone(),
    })
}
