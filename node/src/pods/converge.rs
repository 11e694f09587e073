//! Brings one pod to where it should be: into the mesh, out of it, or to other settings.
//!
//! `converge` compares what is wanted with what is, under the pod's lock, and is called whenever
//! either may have changed. It is safe to call at any time and does nothing when both agree.

use std::sync::Arc;

use tokio::{sync::OwnedMutexGuard, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_api::model::{Mesh, Pod};
use weft_api::proto::node as proto;
use weft_runtime::logging::report;

use super::{
    desired,
    enrol::{self, EnrolError, Enrolled, Listener, Moment, Plan},
    record::{Made, Record, Sandbox},
    status::Standing,
    table::{Entry, Pods, State},
};
use weft_common::MAX_PODS;

use crate::lend::Announced;

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
        if state.sandbox.is_none() {
            return Ok(());
        }
        let mut pod = self.parts.desired.find(&entry.uid);
        if pod.is_none() && state.adopting.is_some() {
            // The controller has forgotten the pod, and it still runs: it stays what it was.
            pod.clone_from(&state.pod);
        }
        match (pod, state.enrolled.is_some()) {
            (Some(pod), true) if pod.mesh == Mesh::Meshed => {
                self.change(entry, &mut state, pod).await;
                Ok(())
            }
            (Some(pod), false) if pod.mesh == Mesh::Meshed => {
                self.enter(entry, &mut state, pod, moment, cancel).await
            }
            (Some(pod), true) => {
                self.leave(entry, &mut state, &pod, cancel).await;
                Ok(())
            }
            (Some(pod), false) => {
                if state.adopting.is_some() {
                    self.take_out(entry, &mut state).await;
                    state.sandbox.iter().for_each(|s| self.keep(s, None, None));
                }
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
        pod: Arc<Pod>,
        moment: Moment,
        cancel: CancellationToken,
    ) -> Result<(), EnrolError> {
        let Some(sandbox) = state.sandbox.clone() else {
            return Ok(());
        };
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
            cut_legacy: self.parts.config.cut_legacy,
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

    pub(super) fn stay_out(&self, entry: &Entry, state: &mut State, pod: &Pod) {
        let (standing, reason) = match &pod.mesh {
            Mesh::Skipped(reason) => (Standing::Skipped, reason),
            Mesh::NotMeshed(reason) => (Standing::Unmeshed, reason),
            Mesh::Meshed => return,
        };
        state.trouble = Some(reason.clone());
        self.publish(entry, state, standing);
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
