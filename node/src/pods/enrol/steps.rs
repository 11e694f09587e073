//! The single steps of enrolment, each of which can be done again: the reconciler repairs with them.

use std::{
    fs,
    net::IpAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    sync::Arc,
};

use tracing::warn;
use weft_api::model::Settings;
use weft_runtime::logging::report;

use super::{EnrolError, Enrolled, Listener, Plan, Tools, error::kernel};
use crate::{
    kernel::{Guard, KernelError, PodKernel, Skips},
    pods::{
        inside::{Proving, Steering},
        netns::Netns,
        sockets::{self, Kind, Ports},
        view::View,
    },
};

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

pub(super) fn first_guard(plan: &Plan) -> Guard {
    match (plan.moment, plan.guard) {
        (super::Moment::Late, Guard::Enforce) => Guard::Audit,
        (_, guard) => guard,
    }
}

pub(super) fn prove(
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
