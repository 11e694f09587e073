//! The order in which a pod enters the mesh and leaves it.
//!
//! In: guard → listeners → rule and route → steering → proof → `enrolled` on → read back. Out is the
//! reverse. A step that fails undoes those before it, so that a pod is inside or outside and never
//! between. Everything here blocks and is called from a thread that may.
//!
//! The guard of a pod that runs already only audits at first: the retransmitted SYN of a
//! connection that it was opening would be dropped. `reconcile` turns it up as soon as those are
//! through.

use std::{
    collections::HashSet,
    fs, io,
    net::IpAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use socket2::Socket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weft_api::model::Settings;
use weft_runtime::logging::report;

use super::{
    datapath::Datapath,
    inside::{Inside, InsideError, Proving, Steering},
    legacy::Connection,
    netns::{Netns, NetnsError},
    record::{Made, Sandbox},
    rules::{ForeignRule, View},
    sockets::{self, Kind, Ports},
};
use crate::kernel::{Expected, Fault, Guard, KernelError, ListenerSlot, PodKernel, Skips};

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

/// Why a pod cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Something inside the pod failed.
    #[error(transparent)]
    Inside(#[from] InsideError),
    /// The kernel side failed.
    #[error("{step}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: KernelError,
    },
    /// A listener cannot be finished.
    #[error("listen in the pod ({})", kind.name())]
    Listen {
        /// Which one.
        kind: Kind,
        /// Why not.
        source: io::Error,
    },
    /// The kernel does not say what it was told.
    #[error("the kernel side is incomplete after enrolment: {0:?}")]
    Incomplete(Vec<Fault>),
    /// The pod was deleted meanwhile.
    #[error("called off: the pod was deleted meanwhile")]
    CalledOff,
    /// The namespace at the path is another one than before.
    #[error("the pod's network namespace at {0:?} is gone")]
    Gone(PathBuf),
    /// Too many pods.
    #[error("no slot is free: this node meshes {0} pods, which is the limit")]
    Full(u32),
}

impl EnrolError {
    /// Name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Inside(InsideError::Proof(_)) => "proof",
            Self::Inside(InsideError::Listen { .. }) | Self::Listen { .. } => "listen",
            Self::Inside(InsideError::Route(_)) => "route",
            Self::Inside(
                InsideError::Netns(_) | InsideError::Socket { .. } | InsideError::Attach { .. },
            ) => "inside",
            Self::Kernel { .. } => "kernel",
            Self::Incomplete(_) => "incomplete",
            Self::CalledOff => "called_off",
            Self::Gone(_) => "gone",
            Self::Full(_) => "full",
        }
    }
}

impl EnrolError {
    /// Whether trying again is in vain: a pod on the node's network never gets one of its own.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Inside(InsideError::Netns(NetnsError::Host(_))))
    }
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
    let is_opening = enrolled.legacy.iter().any(|legacy| legacy.is_opening);
    if enrolled.guard != plan.guard && !is_opening {
        turn_guard(tools, &mut enrolled, plan.guard)?;
    }
    Ok(enrolled)
}

/// Sets what the guard does for a pod that is enrolled.
///
/// # Errors
/// When the kernel side fails.
pub fn turn_guard(tools: &Tools, enrolled: &mut Enrolled, guard: Guard) -> Result<(), EnrolError> {
    tools
        .datapath
        .set_guard(enrolled.cookie, guard)
        .map_err(kernel("set the guard"))?;
    enrolled.guard = guard;
    Ok(())
}

/// Enters what is not captured.
///
/// # Errors
/// When the kernel side fails.
pub fn set_skips(
    tools: &Tools,
    cookie: u64,
    settings: &Settings,
    own: &[IpAddr],
) -> Result<(), EnrolError> {
    let skips = Skips {
        inbound_ports: settings.skip_inbound.clone(),
        outbound_ports: settings.skip_outbound.clone(),
        subnets: settings.skip_subnets.clone(),
        own: own.to_vec(),
    };
    tools
        .datapath
        .set_skips(cookie, &skips)
        .map_err(kernel("enter what is not captured"))
}

/// Attaches steering of both directions.
///
/// # Errors
/// When the kernel side fails.
pub fn steer(
    tools: &Tools,
    uid: &str,
    slot: u32,
    cookie: u64,
    netns: &Netns,
    view: &View,
) -> Result<(), EnrolError> {
    tools
        .datapath
        .attach_outbound(uid, slot, cookie, netns.as_fd())
        .map_err(kernel("attach outbound steering"))?;
    let steering = Steering {
        datapath: Arc::clone(&tools.datapath),
        uid: uid.into(),
        slot,
        cookie,
    };
    let interfaces: Vec<u32> = view.interfaces.iter().map(|(index, _)| *index).collect();
    Ok(tools.inside.steer_inbound(netns, &steering, &interfaces)?)
}

/// Puts a listener where the kernel programs look for it.
///
/// # Errors
/// When the kernel side fails.
pub fn place(tools: &Tools, slot: u32, listener: &Listener) -> Result<(), EnrolError> {
    let Some(which) = listener.kind.slot() else {
        return Ok(());
    };
    tools
        .datapath
        .set_listener(slot, which, listener.socket.as_fd())
        .map_err(kernel("enter a listener"))
}

/// Makes the listeners that are not held yet. Each is tagged before it listens, because accepted
/// sockets inherit the tag.
///
/// # Errors
/// When a port is taken, or the kernel side fails.
pub fn listen(tools: &Tools, plan: &Plan, netns: &Netns) -> Result<Vec<Listener>, EnrolError> {
    let mut listeners = plan.held.clone();
    let missing: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| !listeners.iter().any(|listener| listener.kind == *kind))
        .collect();
    let ports = Ports::from(&plan.settings);
    for (kind, socket) in tools.inside.bind(netns, &missing, ports)? {
        tools
            .datapath
            .tag_lent(socket.as_fd())
            .map_err(kernel("tag a listener as lent"))?;
        let finished = sockets::listen(&socket).and_then(|()| sockets::cookie(socket.as_fd()));
        let cookie = finished.map_err(|source| EnrolError::Listen { kind, source })?;
        listeners.push(Listener {
            kind,
            socket: Arc::new(socket),
            cookie,
        });
    }
    listeners.sort_by_key(|listener| listener.kind);
    Ok(listeners)
}

/// Takes a pod out: capture off, steering off, rule and route away, guard last. Goes on when a step
/// fails, because what is left hurts more than what is done twice; the reconciler tries again.
pub fn undo(tools: &Tools, uid: &str, netns: Option<&Netns>, cookie: u64, slot: u32) -> bool {
    let datapath = &tools.datapath;
    let mut clean = true;
    let mut note = |step: &'static str, failed: Option<String>| {
        if let Some(error) = failed {
            clean = false;
            warn!(uid, step, error, "a pod cannot be taken out cleanly");
        }
    };
    let text = |outcome: Result<(), KernelError>| match outcome {
        Ok(()) | Err(KernelError::UnknownPod { .. }) => None,
        Err(error) => Some(report(&error).to_string()),
    };
    note("capture off", text(datapath.set_enrolled(cookie, false)));
    if let Some(netns) = netns {
        let removed = tools.inside.unroute(netns);
        note("rule", removed.err().map(|e| report(&e).to_string()));
    }
    note("steering off", text(datapath.detach(uid)));
    note("listeners", text(datapath.clear_listeners(slot)));
    note("entry", text(datapath.remove_pod(cookie, slot)));
    clean
}

/// Enters the pod with its guard and what is not captured.
///
/// # Errors
/// When the kernel side fails.
pub fn enter(
    tools: &Tools,
    plan: &Plan,
    cookie: u64,
    view: &View,
    guard: Guard,
) -> Result<(), EnrolError> {
    let ports = Ports::from(&plan.settings);
    tools
        .datapath
        .add_pod(&PodKernel {
            cookie,
            slot: plan.slot,
            uid: &plan.sandbox.uid,
            cgroup: cgroup(tools, plan.sandbox.cgroup.as_deref()),
            guard,
            inbound_port: ports.inbound,
            admin_port: ports.admin,
        })
        .map_err(kernel("enter the pod"))?;
    set_skips(tools, cookie, &plan.settings, &view.addresses)
}

fn first_guard(plan: &Plan) -> Guard {
    match (plan.moment, plan.guard) {
        (Moment::Late, Guard::Enforce) => Guard::Audit,
        (_, guard) => guard,
    }
}

fn prove(
    tools: &Tools,
    plan: &Plan,
    netns: &Netns,
    view: &View,
    listeners: &[Listener],
) -> Result<(), EnrolError> {
    for listener in listeners {
        let family = listener.kind.family();
        let is_outbound = matches!(listener.kind, Kind::OutboundV4 | Kind::OutboundV6);
        if !is_outbound || !view.families().contains(&family) {
            continue;
        }
        let socket = listener.socket.try_clone();
        let proving = Proving {
            listener: socket.map_err(|source| EnrolError::Listen {
                kind: listener.kind,
                source,
            })?,
            family,
            is_fresh: !plan.held.iter().any(|held| held.cookie == listener.cookie),
        };
        tools
            .inside
            .prove(netns, &proving, &plan.settings.skip_subnets)?;
    }
    Ok(())
}

/// Id and level of a pod's cgroup. The runtime says the path from the root of the hierarchy; a path
/// that is there as it stands is taken too.
fn cgroup(tools: &Tools, path: Option<&Path>) -> Option<(u64, u32)> {
    let mount = tools.cgroup_mount.as_deref()?;
    let path = path?;
    let full = if path.starts_with(mount) {
        path.to_owned()
    } else {
        mount.join(path.strip_prefix("/").unwrap_or(path))
    };
    let level = full.strip_prefix(mount).ok()?.components().count();
    match fs::metadata(&full) {
        Ok(metadata) => Some((metadata.ino(), u32::try_from(level).ok()?)),
        Err(error) => {
            warn!(%error, path = %full.display(), "the pod's cgroup is not there; nested network namespaces are not guarded");
            None
        }
    }
}

fn kernel(step: &'static str) -> impl FnOnce(KernelError) -> EnrolError {
    move |source| EnrolError::Kernel { step, source }
}
