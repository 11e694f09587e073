//! Which pods are to be meshed: what the controller said last, in memory and on disk.
//!
//! The file `RUN_DIR/pods-cache.json` lets a restarted daemon (and the CNI plugin, while the daemon
//! is away) answer for pods that are not meshed without the controller, and enrol those that are.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use parking_lot::Mutex;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use tracing::warn;
use weft_api::{
    model::{Mesh, Pod},
    proto::node as proto,
};

use super::record::write_whole;

/// Name of the file below the run directory.
pub const CACHE_FILE: &str = "pods-cache.json";

/// What the file holds about one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether it is to be meshed.
    pub meshed: bool,
    /// The whole record: a `weft.node.v1.Pod`, as base64.
    pub record: String,
}

/// The file: pods by uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// The pods.
    pub pods: BTreeMap<String, CachedPod>,
}

/// What is to be done about a pod that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// It is to be meshed.
    Mesh(Arc<Pod>),
    /// It starts without the mesh: why, for people.
    Pass(String),
    /// Nobody can tell now: why, for people.
    Unknown(String),
}

/// The pods that the controller knows of. Cheap to share by `Arc`.
pub struct Desired {
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    /// Grows with every change; `true` while the controller's stream is open.
    changed: watch::Sender<bool>,
    file: PathBuf,
    /// Namespaces whose pods start without the mesh when nothing is known about them.
    never_wait: Vec<String>,
}

impl Cache {
    /// Reads the file; one that is absent or broken is empty.
    pub fn load(path: &Path) -> Self {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                warn!(%error, path = %path.display(), "cache of pods is unreadable; ignored");
                Self::default()
            }),
            Err(_absent) => Self::default(),
        }
    }

    /// Whether the namespace has pods, and none of them is meshed.
    pub fn is_unmeshed_namespace(&self, namespace: &str) -> bool {
        let mut pods = self
            .pods
            .values()
            .filter(|pod| pod.namespace == namespace)
            .peekable();
        pods.peek().is_some() && pods.all(|pod| !pod.meshed)
    }
}

/// A pod's record as text.
pub fn encode(pod: &Pod) -> String {
    BASE64.encode(proto::Pod::from(pod).encode_to_vec())
}

/// A pod's record from text, if it is one.
pub fn decode(text: &str) -> Option<Pod> {
    let bytes = BASE64.decode(text).ok()?;
    Pod::try_from(proto::Pod::decode(bytes.as_slice()).ok()?).ok()
}

impl Desired {
    /// Makes a store filled from the file in the run directory.
    pub fn open(run_dir: &Path, never_wait: Vec<String>) -> Self {
        let file = run_dir.join(CACHE_FILE);
        let cached = Cache::load(&file);
        let pods = cached
            .pods
            .iter()
            .filter_map(|(uid, pod)| Some((uid.clone(), Arc::new(decode(&pod.record)?))))
            .collect();
        Self {
            pods: Mutex::new(pods),
            changed: watch::Sender::new(false),
            file,
            never_wait,
        }
    }

    /// The pod, if it is known.
    pub fn find(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.lock().get(uid).cloned()
    }

    /// Uid of the pod with this name, if it is known and only one has it.
    pub fn find_uid(&self, namespace: &str, name: &str) -> Option<String> {
        let pods = self.pods.lock();
        let mut named = pods
            .values()
            .filter(|pod| *pod.namespace == *namespace && *pod.name == *name);
        let first = named.next()?;
        named.next().is_none().then(|| first.uid.to_string())
    }

    /// Enters a pod that is not known, from a record of a former process.
    pub fn remember(&self, pod: Pod) {
        let mut pods = self.pods.lock();
        pods.entry(pod.uid.to_string())
            .or_insert_with(|| Arc::new(pod));
    }

    /// Replaces everything; returns the uids that are new, changed or gone.
    pub fn replace(&self, pods: Vec<Pod>) -> Vec<String> {
        let next: HashMap<String, Arc<Pod>> = pods
            .into_iter()
            .map(|pod| (pod.uid.to_string(), Arc::new(pod)))
            .collect();
        let mut current = self.pods.lock();
        let mut touched: Vec<String> = next
            .iter()
            .filter(|(uid, pod)| current.get(*uid) != Some(*pod))
            .map(|(uid, _)| uid.clone())
            .collect();
        touched.extend(
            current
                .keys()
                .filter(|uid| !next.contains_key(*uid))
                .cloned(),
        );
        *current = next;
        drop(current);
        self.changed.send_modify(|_connected| {});
        touched
    }

    /// Enters one pod; returns whether that changed anything.
    pub fn upsert(&self, pod: Pod) -> bool {
        let uid = pod.uid.to_string();
        let pod = Arc::new(pod);
        let before = self.pods.lock().insert(uid, Arc::clone(&pod));
        self.changed.send_modify(|_connected| {});
        before != Some(pod)
    }

    /// Forgets one pod.
    pub fn remove(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }

    /// Says whether the controller's stream is open.
    pub fn set_connected(&self, connected: bool) {
        self.changed.send_replace(connected);
    }

    /// Whether the controller's stream is open.
    pub fn is_connected(&self) -> bool {
        *self.changed.borrow()
    }

    /// Decides about a pod that starts; waits for the controller to tell, if need be.
    pub async fn decide(&self, uid: &str, namespace: &str, patience: Duration) -> Decision {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(decision) = self.decide_now(uid, namespace) {
                    return decision;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(patience, wait).await.unwrap_or_else(|_elapsed| {
            Decision::Unknown(if self.is_connected() {
                "the controller has not announced the pod yet".to_owned()
            } else {
                "the pod is unknown and the controller is not connected".to_owned()
            })
        })
    }

    fn decide_now(&self, uid: &str, namespace: &str) -> Option<Decision> {
        if let Some(pod) = self.find(uid) {
            return Some(match &pod.mesh {
                Mesh::Meshed => Decision::Mesh(pod),
                Mesh::NotMeshed(reason) | Mesh::Skipped(reason) => Decision::Pass(reason.clone()),
            });
        }
        if self.never_wait.iter().any(|name| name == namespace) {
            let reason = "the namespace never waits for the controller";
            return Some(Decision::Pass(reason.to_owned()));
        }
        (!self.is_connected() && self.cache().is_unmeshed_namespace(namespace)).then(|| {
            let reason = "the controller is away, and no pod of the namespace was meshed";
            Decision::Pass(reason.to_owned())
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.cache())?;
        write_whole(&self.file, &text)
    }

    fn cache(&self) -> Cache {
        let pods = self.pods.lock();
        let cached = pods.iter().map(|(uid, pod)| {
            let cached = CachedPod {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                meshed: pod.mesh == Mesh::Meshed,
                record: encode(pod),
            };
            (uid.clone(), cached)
        });
        Cache {
            pods: cached.collect(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use weft_api::model::{PodUid, Settings};

    use super::*;

    pub(crate) fn pod(uid: &str, mesh: Mesh) -> Pod {
        Pod {
            uid: PodUid::from(uid),
            namespace: "shop".into(),
            name: format!("web-{uid}").into(),
            service_account: "web".into(),
            identity: "web.shop.serviceaccount.identity.linkerd.cluster.local"
                .parse()
                .unwrap(),
            ips: Vec::new(),
            mesh,
            settings: Settings::default(),
            owner: ("deployment".into(), "web".into()),
        }
    }

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test(start_paused = true)]
    async fn pods_are_decided_by_what_is_known_and_waited_for_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let no = || Mesh::NotMeshed("nobody asked".to_owned());
        let desired = Desired::open(folder.path(), vec!["kube-system".to_owned()]);
        let unknown = desired.decide("a", "shop", SHORT).await;
        assert!(matches!(unknown, Decision::Unknown(_)));
        let system = desired.decide("a", "kube-system", SHORT).await;
        assert!(matches!(system, Decision::Pass(_)));
        let (decision, ()) = tokio::join!(desired.decide("a", "shop", SHORT), async {
            desired.upsert(pod("a", Mesh::Meshed));
        });
        assert!(matches!(decision, Decision::Mesh(_)));
        desired.upsert(pod("a", no()));
        let neighbour = desired.decide("b", "shop", SHORT).await;
        assert!(matches!(neighbour, Decision::Pass(_)), "{neighbour:?}");
        desired.set_connected(true);
        let neighbour = desired.decide("b", "shop", SHORT).await;
        assert!(matches!(neighbour, Decision::Unknown(_)), "{neighbour:?}");
    }

    #[test]
    fn what_was_known_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let desired = Desired::open(folder.path(), Vec::new());
        assert!(desired.upsert(pod("a", Mesh::Meshed)));
        assert!(!desired.upsert(pod("a", Mesh::Meshed)));
        desired.save().unwrap();
        let again = Desired::open(folder.path(), Vec::new());
        assert_eq!(again.find("a").as_deref(), Some(&pod("a", Mesh::Meshed)));
        assert_eq!(again.find_uid("shop", "web-a").as_deref(), Some("a"));
    }

    #[test]
    fn a_snapshot_names_what_is_new_changed_or_gone() {
        let folder = tempfile::tempdir().unwrap();
        let desired = Desired::open(folder.path(), Vec::new());
        desired.replace(vec![pod("a", Mesh::Meshed), pod("b", Mesh::Meshed)]);
        let mut touched = desired.replace(vec![
            pod("b", Mesh::Skipped("no".to_owned())),
            pod("c", Mesh::Meshed),
        ]);
        touched.sort();
        assert_eq!(touched, ["a", "b", "c"]);
    }
}
