//! The order in which a pod enters the mesh and leaves it.
//!
//! In: guard → listeners → rule and route → steering → proof → `enrolled` on → read back. Out is the
//! reverse. A step that fails undoes those before it, so that a pod is inside or outside and never
//! between. Everything here blocks and is called from a thread that may.
//!
//! The guard of a pod that runs already only audits at first: the retransmitted SYN of a
//! connection that it was opening would be dropped. `reconcile` turns it up as soon as those are
//! through.

mod error;
mod steps;

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::SystemTime};

use socket2::Socket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weft_api::model::Settings;
use weft_runtime::logging::report;

pub use error::EnrolError;
pub use steps::{enter, listen, place, set_skips, steer, turn_guard, undo};

use super::{
    datapath::Datapath,
    inside::Inside,
    legacy::Connection,
    netns::Netns,
    record::{Made, Sandbox},
    rules::ForeignRule,
    sockets::Kind,
    view::View,
};
use crate::kernel::{Expected, Fault, Guard, KernelError, ListenerSlot};
use error::kernel;
use steps::{first_guard, prove};

/// What enrolment works with.
#[derive(Clone)]
pub struct Tools {
    /// The kernel side.
    pub datapath: Arc<dyn Datapath>,
    /// The way into pods' namespaces.
    pub inside: Arc<dyn Inside>,
    /// Where cgroup v2 is mounted, to find pods' cgroups.
    pub cgroup_mount: Option<PathBuf>,
}

/// A listener of a pod. Cheap to clone; the socket is open while a clone lives.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Which one.
    pub kind: Kind,
    /// The socket.
    pub socket: Arc<Socket>,
    /// Its cookie.
    pub cookie: u64,
}

/// When a pod is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before any of its containers runs.
    Start,
    /// While it runs.
    Late,
    /// It was enrolled by a former process, and its connections live.
    Adopt,
}

/// What is to be done for a pod.
pub struct Plan {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its slot.
    pub slot: u32,
    /// What the pod wants.
    pub settings: Settings,
    /// What the guard does in the end.
    pub guard: Guard,
    /// Whether the pod runs already.
    pub moment: Moment,
    /// Listeners that exist already, taken back from an agent.
    pub held: Vec<Listener>,
    /// Whether connections from before a late enrolment are cut.
    pub cut_legacy: bool,
    /// Called off when the pod is deleted meanwhile.
    pub cancel: CancellationToken,
}

/// A pod that is in the mesh.
#[derive(Debug)]
pub struct Enrolled {
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Cookie of that.
    pub cookie: u64,
    /// Slot of the listeners.
    pub slot: u32,
    /// Interfaces and addresses when last looked at.
    pub view: View,
    /// The listeners.
    pub listeners: Vec<Listener>,
    /// What the guard does now.
    pub guard: Guard,
    /// Connections from before, which are outside the mesh.
    pub legacy: HashSet<Connection>,
    /// Rules of others that come before ours.
    pub foreign_rules: Vec<ForeignRule>,
    /// Since when.
    pub since: SystemTime,
}

impl Enrolled {
    /// What is to be remembered.
    pub fn made(&self) -> Made {
        Made {
            cookie: self.cookie,
            slot: self.slot,
            listeners: self
                .listeners
                .iter()
                .map(|listener| (listener.kind, listener.cookie))
                .collect(),
        }
    }

    /// Listeners that the kernel programs should know, with their cookies.
    pub fn steered(&self) -> Vec<(ListenerSlot, u64)> {
        self.listeners
            .iter()
            .filter_map(|listener| Some((listener.kind.slot()?, listener.cookie)))
            .collect()
    }

    /// What the kernel side should say about this pod.
    pub fn faults(&self, tools: &Tools, uid: &str) -> Result<Vec<Fault>, KernelError> {
        let interfaces: Vec<u32> = self
            .view
            .interfaces
            .iter()
            .map(|(index, _)| *index)
            .collect();
        tools.datapath.verify(&Expected {
            uid,
            cookie: self.cookie,
            slot: self.slot,
            enrolled: true,
            listeners: &self.steered(),
            ifindexes: &interfaces,
        })
    }
}

/// Brings a pod into the mesh. Idempotent: what is there already stays.
///
/// # Errors
/// When a step fails; then everything is as before, except for a pod that is adopted: that one is
/// left as far as it came, because its connections live.
pub fn enrol(tools: &Tools, plan: &Plan) -> Result<Enrolled, EnrolError> {
    let netns = tools.inside.open(&plan.sandbox.netns)?;
    if netns.id() != plan.sandbox.netns_id {
        return Err(EnrolError::Gone(plan.sandbox.netns.clone()));
    }
    let (cookie, view) = tools.inside.look(&netns)?;
    let enrolled = in_order(tools, plan, Arc::new(netns), cookie, view);
    if let Err(error) = &enrolled
        && plan.moment != Moment::Adopt
    {
        debug!(uid = plan.sandbox.uid, error = %report(error), "enrolment is undone");
        let netns = tools.inside.open(&plan.sandbox.netns).ok();
        undo(tools, &plan.sandbox.uid, netns.as_ref(), cookie, plan.slot);
    }
    enrolled
}

fn in_order(
    tools: &Tools,
    plan: &Plan,
    netns: Arc<Netns>,
    cookie: u64,
    view: View,
) -> Result<Enrolled, EnrolError> {
    let uid = plan.sandbox.uid.as_str();
    let step = || match plan.cancel.is_cancelled() {
        true => Err(EnrolError::CalledOff),
        false => Ok(()),
    };
    step()?;
    let guard = first_guard(plan);
    enter(tools, plan, cookie, &view, guard)?;
    step()?;
    let listeners = listen(tools, plan, &netns)?;
    for listener in &listeners {
        place(tools, plan.slot, listener)?;
    }
    step()?;
    let foreign_rules = tools.inside.route(&netns, &view)?;
    for rule in &foreign_rules {
        warn!(
            uid,
            preference = rule.preference,
            table = rule.table,
            "the pod has a routing rule that comes before ours; what it matches is not captured"
        );
    }
    step()?;
    steer(tools, uid, plan.slot, cookie, &netns, &view)?;
    if plan.moment != Moment::Adopt {
        prove(tools, plan, &netns, &view, &listeners)?;
    }
    let legacy = match plan.moment {
        Moment::Start | Moment::Adopt => HashSet::new(),
        Moment::Late => tools.inside.connections(&netns, &view.addresses)?,
    };
    step()?;
    tools
        .datapath
        .set_enrolled(cookie, true)
        .map_err(kernel("switch capture on"))?;
    let mut enrolled = Enrolled {
        netns,
        cookie,
        slot: plan.slot,
        view,
        listeners,
        guard,
        legacy,
        foreign_rules,
        since: SystemTime::now(),
    };
    let faults = enrolled
        .faults(tools, uid)
        .map_err(kernel("read back what was enrolled"))?;
    if !faults.is_empty() {
        return Err(EnrolError::Incomplete(faults));
    }
    if plan.cut_legacy && !enrolled.legacy.is_empty() {
        let legacy = enrolled.legacy.drain().collect();
        let count = tools.inside.cut(&enrolled.netns, legacy)?;
        warn!(uid, count, "connections from before enrolment are cut");
    }
    let is_opening = enrolled.legacy.iter().any(|legacy| legacy.is_opening);
    if enrolled.guard != plan.guard && !is_opening {
        turn_guard(tools, &mut enrolled, plan.guard)?;
    }
    Ok(enrolled)
}
