//! What others ask of the table: the container runtime (through CNI), the controller, and agents.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use socket2::Socket;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};
use weft_runtime::logging::report;

use super::{
    converge::blocking,
    desired::Decision,
    enrol::{EnrolError, Listener, Moment},
    netns::NetnsId,
    record::{Sandbox, is_valid_uid},
    sockets::{self, Family, Kind},
    status::Standing,
    table::{Entry, Pods},
};
use crate::lend::{BoxFuture, Lender};

/// What the container runtime says about a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The pod's uid; empty if the runtime does not say it.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The sandbox.
    pub container_id: String,
    /// Interface that was made for it.
    pub ifname: String,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// Addresses that the previous plugin reported.
    pub ips: Vec<IpAddr>,
    /// The pod's cgroup.
    pub cgroup: Option<PathBuf>,
}

/// Why a pod cannot start, or is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It may work later.
    #[error("{0}")]
    TryAgain(String),
    /// The pod cannot be enrolled.
    #[error("pod {pod} cannot be meshed")]
    Enrol {
        /// Namespace and name.
        pod: String,
        /// Why not.
        source: EnrolError,
    },
}

impl Pods {
    /// Lets a pod start: returns once it is in the mesh, or is known not to belong there.
    ///
    /// # Errors
    /// When it belongs there and cannot be had within the budget, or nobody can tell.
    pub async fn add(self: &Arc<Self>, announcement: Announcement) -> Result<(), RequestError> {
        let deadline = Instant::now() + self.parts.config.budget;
        let sandbox = self.sandbox(announcement)?;
        let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
        self.replace_others(&sandbox).await;
        let entry = self.entry(&sandbox.uid);
        let settled = timeout_at(deadline, self.settle_in(&entry, sandbox.clone())).await;
        if settled.is_err() {
            let why = "what was begun with the pod before is still being undone";
            return Err(RequestError::TryAgain(format!("pod {pod}: {why}")));
        }
        let cancel = entry.cancel_token();
        let patience = deadline.saturating_duration_since(Instant::now());
        let decision = tokio::select! {
            decision = self.parts.desired.decide(&sandbox.uid, &sandbox.namespace, patience) => decision,
            () = cancel.cancelled() => return Err(called_off(&pod)),
        };
        match decision {
            Decision::Pass(reason) => {
                debug!(pod, reason, "pod starts without the mesh");
                self.converge(&entry, Moment::Start).await.ok();
                return Ok(());
            }
            Decision::Unknown(reason) => {
                return Err(RequestError::TryAgain(format!("pod {pod}: {reason}")));
            }
            Decision::Mesh(_) => {}
        }
        // In a task of its own: if the budget ends first, the work is called off and undone, and
        // the pod's lock stays held until that is done.
        let (this, entry_of_task) = (Arc::clone(self), Arc::clone(&entry));
        let work = self
            .tasks
            .spawn(async move { this.converge(&entry_of_task, Moment::Start).await });
        match timeout_at(deadline, work).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(EnrolError::CalledOff))) => Err(called_off(&pod)),
            Ok(Ok(Err(source))) => Err(RequestError::Enrol { pod, source }),
            Ok(Err(_panicked)) => Err(RequestError::TryAgain(format!(
                "pod {pod}: enrolment panicked; see weft-node's log"
            ))),
            Err(_elapsed) => {
                cancel.cancel();
                Err(RequestError::TryAgain(format!(
                    "pod {pod}: enrolment took longer than {:?}",
                    self.parts.config.budget
                )))
            }
        }
    }

    /// Notes a pod that has started already, and enrols it if it belongs into the mesh.
    ///
    /// # Errors
    /// When the sandbox makes no sense or is gone.
    pub async fn note(self: &Arc<Self>, announcement: Announcement) -> Result<(), RequestError> {
        let sandbox = self.sandbox(announcement)?;
        let uid = sandbox.uid.clone();
        self.settle_in(&self.entry(&uid), sandbox).await;
        self.changed(vec![uid]);
        Ok(())
    }

    /// Forgets a sandbox. One that is not known, or was made anew meanwhile, is no error.
    pub async fn delete(self: &Arc<Self>, container_id: &str, uid: &str) {
        let entry = if uid.is_empty() {
            self.by_container(container_id)
        } else {
            self.find(uid)
        };
        let Some(entry) = entry else { return };
        if entry.container_id() != container_id {
            debug!(
                uid = entry.uid,
                container_id, "an older sandbox of the pod is deleted"
            );
            return;
        }
        self.forget(&entry, "sandbox deleted").await;
    }

    /// Removes every sandbox that the runtime does not know any more.
    pub async fn collect_garbage(self: &Arc<Self>, valid: &[String]) {
        for entry in self.entries() {
            if !valid.contains(&entry.container_id()) {
                self.forget(&entry, "sandbox is unknown to the runtime")
                    .await;
            }
        }
    }

    /// Says what is wrong with a pod that should be meshed.
    ///
    /// # Errors
    /// When something is.
    pub async fn check(
        self: &Arc<Self>,
        container_id: &str,
        uid: &str,
    ) -> Result<(), RequestError> {
        let entry = if uid.is_empty() {
            self.by_container(container_id)
        } else {
            self.find(uid)
        };
        let Some(entry) = entry else {
            return Err(RequestError::Invalid(format!(
                "sandbox {container_id} was never added"
            )));
        };
        self.look_after(&entry).await;
        let status = entry.status.lock().clone();
        match status.standing {
            Standing::Meshed if status.faults.is_empty() => Ok(()),
            Standing::Unmeshed | Standing::Skipped | Standing::Leaving => Ok(()),
            Standing::Meshed | Standing::Failed | Standing::Unknown | Standing::Adopting => {
                Err(RequestError::TryAgain(format!(
                    "pod {}/{} is {}: {} {}",
                    status.namespace,
                    status.name,
                    status.standing.name(),
                    status.reason,
                    status.faults.join(", ")
                )))
            }
        }
    }

    /// Brings pods to where they should be after the controller said something about them.
    pub fn changed(self: &Arc<Self>, uids: Vec<String>) {
        for uid in uids {
            let Some(entry) = self.find(&uid) else {
                continue;
            };
            let this = Arc::clone(self);
            self.tasks.spawn(async move {
                // Errors are logged, shown in status and tried again by the reconciler.
                this.converge(&entry, Moment::Late).await.ok();
            });
        }
    }

    /// Waits for work that is under way, when the process stops.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn sandbox(&self, announcement: Announcement) -> Result<Sandbox, RequestError> {
        let Announcement {
            mut uid,
            namespace,
            name,
            container_id,
            ifname,
            netns,
            ips,
            cgroup,
        } = announcement;
        if uid.is_empty() {
            let desired = &self.parts.desired;
            uid = desired.find_uid(&namespace, &name).ok_or_else(|| {
                RequestError::TryAgain(format!(
                    "pod {namespace}/{name} is unknown and the runtime does not tell its uid (K8S_POD_UID)"
                ))
            })?;
        }
        if !is_valid_uid(&uid) {
            return Err(RequestError::Invalid(format!("{uid:?} is no pod uid")));
        }
        let netns_id = NetnsId::of_path(&netns).map_err(|error| {
            RequestError::Invalid(format!("network namespace {}: {error}", netns.display()))
        })?;
        Ok(Sandbox {
            uid,
            namespace,
            name,
            container_id,
            ifname,
            netns,
            netns_id,
            ips,
            cgroup,
        })
    }

    /// Forgets pods that cannot be any more: this sandbox has their namespace or their address.
    async fn replace_others(self: &Arc<Self>, sandbox: &Sandbox) {
        for entry in self.entries() {
            if entry.is_replaced_by(sandbox) {
                self.forget(&entry, "another pod has its address or namespace")
                    .await;
            }
        }
    }

    /// Notes the sandbox; undoes what an older sandbox of the same pod left.
    async fn settle_in(self: &Arc<Self>, entry: &Arc<Entry>, sandbox: Sandbox) {
        if !entry.has_sandbox(&sandbox) {
            entry.call_off();
        }
        entry.resume();
        let mut state = Arc::clone(&entry.state).lock_owned().await;
        let is_same = state
            .sandbox
            .as_ref()
            .is_some_and(|before| before.netns_id == sandbox.netns_id);
        if !is_same {
            self.take_out(entry, &mut state).await;
        }
        if !is_same || state.enrolled.is_none() && state.adopting.is_none() {
            self.keep(&sandbox, None, None);
        }
        state.sandbox = Some(sandbox);
        let standing = match state.enrolled {
            Some(_) => Standing::Meshed,
            None => Standing::Unknown,
        };
        entry.note_sandbox(&state);
        self.publish(entry, &state, standing);
    }

    /// Undoes everything about a pod and forgets it.
    pub(super) async fn forget(self: &Arc<Self>, entry: &Arc<Entry>, why: &'static str) {
        entry.call_off();
        let mut state = Arc::clone(&entry.state).lock_owned().await;
        self.take_out(entry, &mut state).await;
        state.sandbox = None;
        self.parts.records.forget(&entry.uid);
        self.drop_entry(entry);
        info!(uid = entry.uid, why, "pod forgotten");
        self.publish(entry, &state, Standing::Unmeshed);
    }

    fn by_container(&self, container_id: &str) -> Option<Arc<Entry>> {
        let mut entries = self.entries().into_iter();
        entries.find(|entry| entry.container_id() == container_id)
    }

    async fn take_back_all(self: &Arc<Self>, uid: &str, offered: Vec<(Kind, OwnedFd)>) {
        let Some(entry) = self.find(uid) else { return };
        let is_offered = {
            let mut state = entry.state.lock().await;
            let Some(adopting) = &mut state.adopting else {
                return;
            };
            for (kind, fd) in offered {
                match verified(kind, fd, &adopting.made) {
                    Some(listener)
                        if !adopting.held.iter().any(|h| h.cookie == listener.cookie) =>
                    {
                        adopting.held.push(listener);
                    }
                    Some(_known) => {}
                    None => warn!(
                        uid,
                        kind = kind.name(),
                        "an agent offers a socket that is not the pod's"
                    ),
                }
            }
            // Every agent holds the same sockets: what this one has not, nobody has.
            if !adopting.held.is_empty() {
                adopting.deadline = Instant::now();
            }
            !adopting.held.is_empty()
        };
        if is_offered {
            // Errors are logged and tried again by the reconciler.
            self.converge(&entry, Moment::Late).await.ok();
        }
    }
}

/// The listener, if it is the socket that was made for the pod. The agent is the less trusted side.
fn verified(kind: Kind, fd: OwnedFd, made: &super::record::Made) -> Option<Listener> {
    let cookie = sockets::cookie(fd.as_fd()).ok()?;
    let is_ours = made.listeners.get(&kind) == Some(&cookie)
        && sockets::netns_cookie(fd.as_fd()).ok()? == made.cookie
        && sockets::is_listening(fd.as_fd());
    is_ours.then(|| Listener {
        kind,
        socket: Arc::new(Socket::from(fd)),
        cookie,
    })
}

fn called_off(pod: &str) -> RequestError {
    RequestError::TryAgain(format!("pod {pod} was deleted meanwhile"))
}

/// Gives agents what they ask for.
pub struct Lending(pub Arc<Pods>);

impl Lender for Lending {
    fn lend(
        &self,
        uid: &str,
        family: Family,
        count: usize,
    ) -> BoxFuture<'_, Result<Vec<OwnedFd>, String>> {
        let (pods, uid) = (Arc::clone(&self.0), uid.to_owned());
        Box::pin(blocking(move || pods.make_sockets(&uid, family, count)))
    }

    fn take_back(&self, uid: &str, listeners: Vec<(Kind, OwnedFd)>) -> BoxFuture<'_, ()> {
        let uid = uid.to_owned();
        Box::pin(async move { self.0.take_back_all(&uid, listeners).await })
    }
}

impl std::fmt::Debug for Lending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lending")
    }
}

/// Logs an error of a background request once, where nobody waits for it.
pub(super) fn log_failure(uid: &str, error: &EnrolError) {
    debug!(uid, error = %report(error), "tried again, in vain");
}
