//! What is wrong with objects that were taken nevertheless.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use weft_api::model::PodUid;

use super::{Index, Kind, NsName, ObjectKey, Space};

/// Something wrong with an object that was taken nevertheless.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectProblem {
    /// The object.
    pub object: ObjectKey,
    /// What is wrong, and what is done instead.
    pub message: String,
}

impl Index {
    /// What is wrong with objects that were taken nevertheless, in the order of their names.
    pub fn problems(&self) -> Vec<ObjectProblem> {
        let mut problems: Vec<_> = self
            .spaces
            .iter()
            .flat_map(|(name, space)| space.problems(name))
            .collect();
        let claims = |ips: &HashMap<IpAddr, BTreeSet<NsName>>, kind| -> Vec<_> {
            let shared = ips.iter().filter(|(_, names)| names.len() > 1);
            shared
                .flat_map(|(ip, names)| {
                    let first = names.first().map(ToString::to_string).unwrap_or_default();
                    names.iter().skip(1).map(move |name| ObjectProblem {
                        object: ObjectKey::new(kind, name.clone()),
                        message: format!("address {ip} is claimed by {first} too"),
                    })
                })
                .collect()
        };
        problems.extend(self.shared_uids());
        problems.extend(claims(&self.pod_ips, Kind::Pod));
        problems.extend(claims(&self.cluster_ips, Kind::Service));
        problems.sort();
        problems
    }

    /// Pods that nodes could not tell apart.
    fn shared_uids(&self) -> Vec<ObjectProblem> {
        let mut uids: HashMap<&PodUid, &NsName> = HashMap::new();
        let pods = self.spaces.values().flat_map(|space| space.pods.values());
        pods.filter_map(|pod| match uids.entry(&pod.uid) {
            Entry::Vacant(entry) => {
                entry.insert(&pod.name);
                None
            }
            Entry::Occupied(first) => Some(ObjectProblem {
                object: ObjectKey::new(Kind::Pod, pod.name.clone()),
                message: format!("has the uid {} of pod {} too", pod.uid, first.get()),
            }),
        })
        .collect()
    }
}

impl Space {
    fn problems(&self, namespace: &Arc<str>) -> Vec<ObjectProblem> {
        let of = |kind, name: &Arc<str>, messages: &[String]| -> Vec<ObjectProblem> {
            let name = NsName::new(Arc::clone(namespace), Arc::clone(name));
            let object = ObjectKey::new(kind, name);
            let problem = |message: &String| ObjectProblem {
                object: object.clone(),
                message: message.clone(),
            };
            messages.iter().map(problem).collect()
        };
        let mut problems = Vec::new();
        if let Some(found) = &self.namespace {
            let name = NsName::cluster_wide(Arc::clone(namespace));
            problems.extend(found.problems.iter().map(|message| ObjectProblem {
                object: ObjectKey::new(Kind::Namespace, name.clone()),
                message: message.clone(),
            }));
        }
        for (name, pod) in &self.pods {
            problems.extend(of(Kind::Pod, name, &pod.problems));
            problems.extend(of(Kind::Pod, name, &pod.settled.problems));
        }
        for (name, service) in &self.services {
            problems.extend(of(Kind::Service, name, &service.problems));
        }
        for (name, slice) in &self.slices {
            problems.extend(of(Kind::EndpointSlice, name, &slice.problems));
        }
        problems
    }
}
