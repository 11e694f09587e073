//! Brings one pod to where it should be: into the mesh, out of it, or to other settings.
//!
//! `converge` compares what is wanted with what is, under the pod's lock, and is called whenever
//! either may have changed. It is safe to call at any time and does nothing when both agree.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_api::model::{Mesh, Pod};
use weft_api::proto::node as proto;
use weft_runtime::logging::report;

use super::{
    desired,
    enrol::{self, EnrolError, Enrolled, Listener, Moment, Plan},
    netns::Netns,
    record::{Made, Record, Sandbox},
    sockets,
    status::Standing,
    table::{Entry, Pods, State},
};
use weft_common::MAX_PODS;

use crate::lend::Announced;

/// Time for connections that were captured an instant before capture went off to arrive.
const SETTLE: Duration = Duration::from_millis(50);

/// How long agents may take to accept what waits in the listeners of a pod that leaves.
const ACCEPT_GRACE: Duration = Duration::from_secs(1);

impl Pods {
    /// Brings a pod to where it should be.
    ///
    /// # Errors
    /// When it should be meshed and cannot be.
    pub(super) async fn converge(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        moment: Moment,
    ) -> Result<(), EnrolError> {
        let cancel = entry.cancel_token();
        let mut state = Arc::clone(&entry.state).lock_owned().await;
        if cancel.is_cancelled() {
            return Err(EnrolError::CalledOff);
        }
        let Some(sandbox) = state.sandbox.clone() else {
            return Ok(());
        };
        let pod = self.parts.desired.find(&entry.uid);
        match (pod, state.enrolled.is_some()) {
            (Some(pod), true) if pod.mesh == Mesh::Meshed => {
                self.change(entry, &mut state, pod).await;
                Ok(())
            }
            (Some(pod), false) if pod.mesh == Mesh::Meshed => {
                self.enter(entry, &mut state, sandbox, pod, moment, cancel)
                    .await
            }
            (Some(pod), true) => {
                self.leave(entry, &mut state, &pod, cancel).await;
                Ok(())
            }
            (Some(pod), false) => {
                self.stay_out(entry, &mut state, &pod);
                Ok(())
            }
            // The controller has forgotten the pod, and it still runs: it stays as it is.
            (None, true) => Ok(()),
            (None, false) => {
                let standing = match state.adopting {
                    Some(_) => Standing::Adopting,
                    None => Standing::Unknown,
                };
                state.trouble = Some("the controller does not know the pod".to_owned());
                self.publish(entry, &state, standing);
                Ok(())
            }
        }
    }

    async fn enter(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        state: &mut OwnedMutexGuard<State>,
        sandbox: Sandbox,
        pod: Arc<Pod>,
        moment: Moment,
        cancel: CancellationToken,
    ) -> Result<(), EnrolError> {
        let (slot, held, moment) = match self.adoption(state) {
            Adoption::None => (self.slot_for(&sandbox, &pod)?, Vec::new(), moment),
            Adoption::Wait => {
                self.publish(entry, state, Standing::Adopting);
                return Ok(());
            }
            Adoption::Now { slot, held } => (slot, held, Moment::Adopt),
        };
        let plan = Plan {
            sandbox,
            slot,
            settings: pod.settings.clone(),
            guard: self.guard(pod.settings.guard),
            moment,
            held,
            cancel,
        };
        let started = Instant::now();
        let tools = self.parts.tools.clone();
        let (enrolled, plan) = blocking(move || (enrol::enrol(&tools, &plan), plan)).await;
        match enrolled {
            Ok(enrolled) => {
                self.parts.metrics.enrolled(started.elapsed());
                info!(
                    pod = pod.display_name(),
                    uid = entry.uid,
                    moment = ?plan.moment,
                    legacy_connections = enrolled.legacy.len(),
                    took = ?started.elapsed(),
                    "pod meshed"
                );
                state.adopting = None;
                state.trouble = None;
                self.entered(entry, state, enrolled, pod);
                Ok(())
            }
            Err(error) => {
                self.parts.metrics.enrol_failed(error.label());
                warn!(
                    pod = pod.display_name(),
                    uid = entry.uid,
                    error = %report(&error),
                    "pod cannot be meshed"
                );
                if plan.moment != Moment::Adopt {
                    self.free_slot(slot);
                    self.keep(&plan.sandbox, None, None);
                }
                state.trouble = Some(report(&error).to_string());
                self.publish(entry, state, Standing::Failed);
                Err(error)
            }
        }
    }

    /// Whether a former process enrolled the pod, and whether its listeners are here.
    fn adoption(&self, state: &State) -> Adoption {
        let Some(adopting) = &state.adopting else {
            return Adoption::None;
        };
        let made = &adopting.made;
        let has_all = made
            .listeners
            .values()
            .all(|cookie| adopting.held.iter().any(|held| held.cookie == *cookie));
        let datapath = &self.parts.tools.datapath;
        let is_held_elsewhere = made.listeners.keys().any(|kind| {
            kind.slot().is_some_and(|which| {
                matches!(datapath.listener_cookie(made.slot, which), Ok(Some(_)))
            })
        });
        if !has_all && is_held_elsewhere && Instant::now() < adopting.deadline {
            return Adoption::Wait;
        }
        Adoption::Now {
            slot: made.slot,
            held: adopting.held.clone(),
        }
    }

    /// Takes a slot, and remembers it before anything is made.
    fn slot_for(&self, sandbox: &Sandbox, pod: &Pod) -> Result<u32, EnrolError> {
        let slot = self.take_slot().ok_or(EnrolError::Full(MAX_PODS))?;
        let made = Made {
            cookie: 0,
            slot,
            listeners: std::collections::BTreeMap::new(),
        };
        self.keep(sandbox, Some(made), Some(pod));
        Ok(slot)
    }

    /// Notes and announces a pod that is in the mesh.
    pub(super) fn entered(
        &self,
        entry: &Entry,
        state: &mut State,
        enrolled: Enrolled,
        pod: Arc<Pod>,
    ) {
        *entry.netns.lock() = Some(Arc::clone(&enrolled.netns));
        if let Some(sandbox) = &state.sandbox {
            self.keep(sandbox, Some(enrolled.made()), Some(&pod));
        }
        self.parts.hub.announce(announced(&pod, &enrolled));
        state.enrolled = Some(enrolled);
        state.pod = Some(pod);
        self.publish(entry, state, Standing::Meshed);
    }

    /// Applies a record that differs from the one before.
    async fn change(&self, entry: &Entry, state: &mut OwnedMutexGuard<State>, pod: Arc<Pod>) {
        let Some(mut enrolled) = state.enrolled.take() else {
            return;
        };
        if state.pod.as_ref() == Some(&pod) {
            state.enrolled = Some(enrolled);
            return;
        }
        let tools = self.parts.tools.clone();
        let guard = self.guard(pod.settings.guard);
        let settings = pod.settings.clone();
        let (changed, enrolled) = blocking(move || {
            let own = enrolled.view.addresses.clone();
            let changed = enrol::set_skips(&tools, enrolled.cookie, &settings, &own)
                .and_then(|()| enrol::turn_guard(&tools, &mut enrolled, guard));
            (changed, enrolled)
        })
        .await;
        if let Err(error) = changed {
            warn!(uid = entry.uid, error = %report(&error), "new settings of a pod cannot be applied");
            state.trouble = Some(report(&error).to_string());
        } else {
            info!(pod = pod.display_name(), "pod's settings applied");
        }
        self.entered(entry, state, enrolled, pod);
    }

    fn stay_out(&self, entry: &Entry, state: &mut State, pod: &Pod) {
        let (standing, reason) = match &pod.mesh {
            Mesh::Skipped(reason) => (Standing::Skipped, reason),
            Mesh::NotMeshed(reason) => (Standing::Unmeshed, reason),
            Mesh::Meshed => return,
        };
        state.trouble = Some(reason.clone());
        self.publish(entry, state, standing);
    }

    /// Takes a running pod out of the mesh without cutting what is open: capture off, what waits is
    /// accepted, agents finish, and only then the route that open connections need goes.
    async fn leave(
        &self,
        entry: &Entry,
        state: &mut OwnedMutexGuard<State>,
        pod: &Pod,
        cancel: CancellationToken,
    ) {
        let Some(enrolled) = state.enrolled.take() else {
            return;
        };
        let listeners = enrolled.listeners.clone();
        let (cookie, netns) = (enrolled.cookie, Arc::clone(&enrolled.netns));
        let own = enrolled.view.addresses.clone();
        state.enrolled = Some(enrolled);
        self.publish(entry, state, Standing::Leaving);
        let datapath = &self.parts.tools.datapath;
        if let Err(error) = datapath.set_enrolled(cookie, false) {
            warn!(uid = entry.uid, error = %report(&error), "capture cannot be switched off");
        }
        let finish = async {
            sleep(SETTLE).await;
            accepted(&listeners).await;
            self.parts.hub.withdraw(&entry.uid);
            self.finished(&netns, &own).await;
        };
        tokio::select! {
            () = finish => {}
            () = cancel.cancelled() => {}
        }
        self.take_out(entry, state).await;
        info!(
            pod = pod.display_name(),
            uid = entry.uid,
            "pod left the mesh"
        );
        if let Some(sandbox) = &state.sandbox {
            self.keep(sandbox, None, None);
        }
        self.stay_out(entry, state, pod);
    }

    /// Waits until agents hold no captured connection of the pod any more, or the grace is over.
    async fn finished(&self, netns: &Arc<Netns>, own: &[std::net::IpAddr]) {
        let deadline = Instant::now() + self.parts.config.leave_grace;
        while Instant::now() < deadline {
            let (inside, netns) = (Arc::clone(&self.parts.tools.inside), Arc::clone(netns));
            let own = own.to_vec();
            let left = blocking(move || inside.captured(&netns, &own)).await;
            match left {
                Ok(0) | Err(_) => return,
                Ok(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Undoes an enrolment at once, agents being told first. Idempotent.
    pub(super) async fn take_out(&self, entry: &Entry, state: &mut OwnedMutexGuard<State>) {
        self.parts.hub.withdraw(&entry.uid);
        *entry.netns.lock() = None;
        let Some((cookie, slot, netns)) = self.traces(state) else {
            return;
        };
        let (tools, uid) = (self.parts.tools.clone(), entry.uid.clone());
        blocking(move || enrol::undo(&tools, &uid, netns.as_deref(), cookie, slot)).await;
        self.free_slot(slot);
    }

    /// What is to be undone; takes it from the state.
    fn traces(&self, state: &mut State) -> Option<(u64, u32, Option<Arc<Netns>>)> {
        if let Some(enrolled) = state.enrolled.take() {
            return Some((enrolled.cookie, enrolled.slot, Some(enrolled.netns)));
        }
        let adopting = state.adopting.take()?;
        let netns = state.sandbox.as_ref().and_then(|sandbox| {
            let netns = self.parts.tools.inside.open(&sandbox.netns).ok()?;
            (netns.id() == sandbox.netns_id).then(|| Arc::new(netns))
        });
        Some((adopting.made.cookie, adopting.made.slot, netns))
    }

    /// Writes the pod's record.
    pub(super) fn keep(&self, sandbox: &Sandbox, made: Option<Made>, pod: Option<&Pod>) {
        let record = Record {
            sandbox: sandbox.clone(),
            made,
            pod: pod.map(desired::encode),
        };
        if let Err(error) = self.parts.records.keep(&record) {
            warn!(uid = sandbox.uid, error = %report(&error), "pod record cannot be kept");
        }
    }
}

enum Adoption {
    /// Nothing to adopt.
    None,
    /// Agents may still bring listeners.
    Wait,
    /// With these listeners, and what is missing made anew.
    Now { slot: u32, held: Vec<Listener> },
}

/// What agents are told about an enrolled pod.
pub(super) fn announced(pod: &Pod, enrolled: &Enrolled) -> Announced {
    Announced {
        pod: proto::Pod::from(pod),
        listeners: enrolled.listeners.clone(),
        ips: enrolled.view.addresses.clone(),
    }
}

/// Waits until nothing waits in the listeners, or the grace is over.
async fn accepted(listeners: &[Listener]) {
    use std::os::fd::AsFd as _;

    let deadline = Instant::now() + ACCEPT_GRACE;
    let is_waiting =
        |listener: &Listener| sockets::waiting(listener.socket.as_fd()).is_ok_and(|n| n > 0);
    while listeners.iter().any(is_waiting) && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Runs what blocks on a thread that may.
pub(super) async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and polls nothing any more.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}
