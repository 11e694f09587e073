//! Looks at every pod every few seconds: is it still there, and is it still as enrolment left it?
//!
//! What is wrong is repaired, counted by its name and shown. A pod can break its own namespace (with
//! CAP_NET_ADMIN it deletes rules and sockets), another daemon can detach programs, a container
//! runtime can forget to say that a sandbox is gone. Also tries again what failed before.

use std::{collections::HashSet, io, os::fd::AsFd as _, sync::Arc};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_api::model::Pod;
use weft_runtime::logging::report;

use super::{
    converge::{announced, blocking},
    enrol::{self, EnrolError, Enrolled, Moment, Plan, Tools},
    netns::NetnsId,
    record::Sandbox,
    requests::log_failure,
    sockets,
    status::Standing,
    table::{Entry, Pods},
    view::View,
};
use crate::kernel::{Fault, Guard};

impl Pods {
    /// Looks after all pods until stopped.
    ///
    /// # Errors
    /// None that end it.
    pub async fn reconcile(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = interval(self.parts.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            for entry in self.entries() {
                self.look_after(&entry).await;
            }
        }
    }

    /// Looks after one pod. One that is being worked on is left alone.
    pub(super) async fn look_after(self: &Arc<Self>, entry: &Arc<Entry>) {
        let Ok(mut state) = Arc::clone(&entry.state).try_lock_owned() else {
            return;
        };
        let Some(sandbox) = state.sandbox.clone() else {
            return;
        };
        if is_gone(&sandbox) {
            drop(state);
            self.forget(entry, "its network namespace is gone").await;
            return;
        }
        let (Some(mut enrolled), Some(pod)) = (state.enrolled.take(), state.pod.clone()) else {
            drop(state);
            if let Err(error) = self.converge(entry, Moment::Late).await {
                log_failure(&entry.uid, &error);
            }
            return;
        };
        let before = enrolled.made();
        let work = Work {
            tools: self.parts.tools.clone(),
            pod: Arc::clone(&pod),
            guard: self.guard(pod.settings.guard),
            sandbox,
        };
        let (enrolled, outcome) = blocking(move || {
            let outcome = work.run(&mut enrolled);
            (enrolled, outcome)
        })
        .await;
        for fault in &outcome.faults {
            self.parts.metrics.repaired(fault);
            warn!(
                pod = pod.display_name(),
                uid = entry.uid,
                fault,
                "pod repaired"
            );
        }
        state.faults = outcome.faults.iter().map(|f| (*f).to_owned()).collect();
        state.trouble = outcome.failed.map(|error| {
            let error = report(&error).to_string();
            warn!(
                pod = pod.display_name(),
                uid = entry.uid,
                error,
                "pod cannot be repaired"
            );
            error
        });
        if enrolled.made() != before || outcome.view_changed {
            info!(
                pod = pod.display_name(),
                "pod's listeners or addresses changed"
            );
            self.parts.hub.announce(announced(&pod, &enrolled));
            if let Some(sandbox) = &state.sandbox {
                self.keep(sandbox, Some(enrolled.made()), Some(&pod));
            }
        }
        state.enrolled = Some(enrolled);
        self.publish(entry, &state, Standing::Meshed);
    }
}

/// Whether the namespace that the pod had is not at its path any more.
fn is_gone(sandbox: &Sandbox) -> bool {
    match NetnsId::of_path(&sandbox.netns) {
        Ok(id) => id != sandbox.netns_id,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

struct Work {
    tools: Tools,
    pod: Arc<Pod>,
    guard: Guard,
    sandbox: Sandbox,
}

#[derive(Default)]
struct Outcome {
    /// What was wrong and is repaired.
    faults: Vec<&'static str>,
    /// What could not be repaired.
    failed: Option<EnrolError>,
    view_changed: bool,
}

impl Work {
    fn run(&self, enrolled: &mut Enrolled) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.failed = self.repair(enrolled, &mut outcome).err();
        outcome
    }

    fn repair(&self, enrolled: &mut Enrolled, outcome: &mut Outcome) -> Result<(), EnrolError> {
        let (_cookie, view) = self.tools.inside.look(&enrolled.netns)?;
        if view != enrolled.view {
            self.follow(enrolled, view)?;
            outcome.view_changed = true;
        }
        self.revive(enrolled, outcome)?;
        let faults = enrolled.faults(&self.tools, &self.sandbox.uid);
        let faults = faults.map_err(|source| EnrolError::Kernel {
            step: "look at the pod in the kernel",
            source,
        })?;
        for fault in faults {
            self.mend(enrolled, &fault)?;
            outcome.faults.push(fault_name(&fault));
        }
        if !self
            .tools
            .inside
            .is_routed(&enrolled.netns, &enrolled.view)?
        {
            enrolled.foreign_rules = self.tools.inside.route(&enrolled.netns, &enrolled.view)?;
            outcome.faults.push("rule");
        }
        self.settle(enrolled)
    }

    /// Follows addresses and interfaces that came or went.
    fn follow(&self, enrolled: &mut Enrolled, view: View) -> Result<(), EnrolError> {
        let settings = &self.pod.settings;
        enrol::set_skips(&self.tools, enrolled.cookie, settings, &view.addresses)?;
        enrolled.foreign_rules = self.tools.inside.route(&enrolled.netns, &view)?;
        enrolled.view = view;
        self.steer(enrolled)
    }

    /// Replaces listeners that do not listen any more.
    fn revive(&self, enrolled: &mut Enrolled, outcome: &mut Outcome) -> Result<(), EnrolError> {
        let count = enrolled.listeners.len();
        enrolled
            .listeners
            .retain(|listener| sockets::is_listening(listener.socket.as_fd()));
        if enrolled.listeners.len() == count {
            return Ok(());
        }
        let plan = self.plan(enrolled);
        enrolled.listeners = enrol::listen(&self.tools, &plan, &enrolled.netns)?;
        for listener in &enrolled.listeners {
            enrol::place(&self.tools, enrolled.slot, listener)?;
        }
        outcome.faults.push("listener");
        Ok(())
    }

    fn mend(&self, enrolled: &Enrolled, fault: &Fault) -> Result<(), EnrolError> {
        let kernel = |source| EnrolError::Kernel {
            step: "repair the kernel side",
            source,
        };
        match fault {
            Fault::CgroupLink(_) => self.tools.datapath.repair_cgroup_links().map_err(kernel),
            Fault::Listener(which) => {
                let listener = enrolled
                    .listeners
                    .iter()
                    .find(|listener| listener.kind.slot() == Some(*which));
                listener.map_or(Ok(()), |listener| {
                    enrol::place(&self.tools, enrolled.slot, listener)
                })
            }
            Fault::OutboundLink | Fault::InboundLink(_) => self.steer(enrolled),
            Fault::PodMissing | Fault::PodDiffers => {
                let plan = self.plan(enrolled);
                enrol::enter(
                    &self.tools,
                    &plan,
                    enrolled.cookie,
                    &enrolled.view,
                    enrolled.guard,
                )?;
                self.tools
                    .datapath
                    .set_enrolled(enrolled.cookie, true)
                    .map_err(kernel)
            }
        }
    }

    /// Counts connections from before enrolment that are left, and turns the guard up when those
    /// that were being opened are through.
    fn settle(&self, enrolled: &mut Enrolled) -> Result<(), EnrolError> {
        if !enrolled.legacy.is_empty() {
            let own = &enrolled.view.addresses;
            let now = self.tools.inside.connections(&enrolled.netns, own)?;
            // One that was opening is found again under either state.
            let ends: HashSet<_> = now.iter().map(|c| (c.local, c.remote)).collect();
            let opening: HashSet<_> = now
                .iter()
                .filter(|c| c.is_opening)
                .map(|c| (c.local, c.remote))
                .collect();
            enrolled.legacy = enrolled
                .legacy
                .iter()
                .filter(|c| ends.contains(&(c.local, c.remote)))
                .map(|c| super::legacy::Connection {
                    is_opening: c.is_opening && opening.contains(&(c.local, c.remote)),
                    ..*c
                })
                .collect();
        }
        let is_opening = enrolled.legacy.iter().any(|c| c.is_opening);
        if enrolled.guard != self.guard && !is_opening {
            enrol::turn_guard(&self.tools, enrolled, self.guard)?;
        }
        Ok(())
    }

    fn steer(&self, enrolled: &Enrolled) -> Result<(), EnrolError> {
        enrol::steer(
            &self.tools,
            &self.sandbox.uid,
            enrolled.slot,
            enrolled.cookie,
            &enrolled.netns,
            &enrolled.view,
        )
    }

    fn plan(&self, enrolled: &Enrolled) -> Plan {
        Plan {
            sandbox: self.sandbox.clone(),
            slot: enrolled.slot,
            settings: self.pod.settings.clone(),
            guard: self.guard,
            moment: Moment::Adopt,
            held: enrolled.listeners.clone(),
            cut_legacy: false,
            cancel: CancellationToken::new(),
        }
    }
}

const fn fault_name(fault: &Fault) -> &'static str {
    match fault {
        Fault::CgroupLink(_) => "cgroup-link",
        Fault::PodMissing => "pod-missing",
        Fault::PodDiffers => "pod-differs",
        Fault::Listener(_) => "slot",
        Fault::OutboundLink => "outbound-link",
        Fault::InboundLink(_) => "inbound-link",
    }
}
