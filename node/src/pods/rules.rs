//! The policy route that turns marked connections of a pod back to its loopback: one rule and one
//! route per address family, by rtnetlink, from inside the pod's network namespace.
//!
//! `ip rule pref P fwmark M/M lookup T` and `ip route local default dev lo src <pod address>
//! table T`, and the same route once more for each of the pod's devices, with a higher metric: a
//! socket that is bound to a device looks only at routes of that device. A family is routed only if the pod has an address of it: otherwise a destination that
//! was unreachable before would seem to be reachable, and clients would not fall back to the other
//! family. The route names the source, or the kernel would choose 127.0.0.1. Rules of others with
//! a lower preference win over ours; they are reported, not touched.

use std::{future::Future, io, net::IpAddr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAttribute, RouteMessage, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::{sockets::Family, view::View};

/// Numbers of the rule and the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Bits that mark a connection to be steered.
    pub mark: u32,
    /// Which bits of the mark count.
    pub mask: u32,
    /// Routing table.
    pub table: u32,
    /// Preference of the rule.
    pub preference: u32,
}

/// What is to be noted about a namespace's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// Family of the rule.
    pub family: Family,
    /// Its preference, lower than ours.
    pub preference: u32,
    /// The table it leads to.
    pub table: u32,
}

/// Why a namespace's routing cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No netlink socket, or no runtime to drive it.
    #[error("open a netlink socket in the pod's network namespace")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("{step}")]
    Netlink {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

impl Family {
    /// Family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn version(self) -> IpVersion {
        match self {
            Self::V4 => IpVersion::V4,
            Self::V6 => IpVersion::V6,
        }
    }

    const fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// Adds rule and route for every family that the pod has; what is there already stays.
///
/// # Errors
/// When netlink fails.
pub fn add(routing: Routing, view: &View) -> Result<Vec<ForeignRule>, RouteError> {
    let view = view.clone();
    drive(async move |handle| {
        let mut foreign = Vec::new();
        for family in view.families() {
            let rules = rules(&handle, family).await?;
            if !rules.iter().any(|rule| is_ours(rule, routing)) {
                add_rule(&handle, routing, family).await?;
            }
            if let Some(source) = view.source(family) {
                for device in devices(&view) {
                    add_route(&handle, routing, source, device).await?;
                }
            }
            foreign.extend(
                rules
                    .iter()
                    .filter_map(|rule| foreign_rule(rule, family, routing)),
            );
        }
        Ok(foreign)
    })
}

/// Whether rule and route are there for every family that the pod has.
///
/// # Errors
/// When netlink fails.
pub fn is_routed(routing: Routing, view: &View) -> Result<bool, RouteError> {
    let view = view.clone();
    drive(async move |handle| {
        for family in view.families() {
            let rules = rules(&handle, family).await?;
            if !rules.iter().any(|rule| is_ours(rule, routing)) {
                return Ok(false);
            }
            let routes = routes(&handle, routing, family).await?;
            if devices(&view).any(|device| !routes.iter().any(|route| is_through(route, device))) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Removes our rules and routes of both families. Nothing to remove is no error.
///
/// # Errors
/// When netlink fails.
pub fn remove(routing: Routing) -> Result<(), RouteError> {
    drive(async move |handle| {
        for family in [Family::V4, Family::V6] {
            let Ok(rules) = rules(&handle, family).await else {
                continue; // a kernel without IPv6
            };
            for rule in rules.into_iter().filter(|rule| is_ours(rule, routing)) {
                let deleted = handle.rule().del(rule).execute().await;
                tolerate(deleted, libc::ENOENT).map_err(failed("delete the steering rule"))?;
            }
            for route in routes(&handle, routing, family).await? {
                let deleted = handle.route().del(route).execute().await;
                tolerate(deleted, libc::ESRCH).map_err(failed("delete the steering route"))?;
            }
        }
        Ok(())
    })
}

/// Runs netlink requests to their end on this thread: the socket must be made here, where the
/// namespace is the pod's, and the caller must not yield.
pub(super) fn drive<R, F>(work: impl FnOnce(Handle) -> F) -> Result<R, RouteError>
where
    F: Future<Output = Result<R, RouteError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(RouteError::Socket)?;
    runtime.block_on(async {
        let (connection, handle, _messages) =
            rtnetlink::new_connection().map_err(RouteError::Socket)?;
        tokio::select! {
            biased;
            result = work(handle) => result,
            () = connection => Err(RouteError::Socket(io::ErrorKind::BrokenPipe.into())),
        }
    })
}

async fn rules(handle: &Handle, family: Family) -> Result<Vec<RuleMessage>, RouteError> {
    let rules = handle.rule().get(family.version()).execute();
    rules
        .try_collect()
        .await
        .map_err(failed("list the pod's routing rules"))
}

async fn routes(
    handle: &Handle,
    routing: Routing,
    family: Family,
) -> Result<Vec<RouteMessage>, RouteError> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = family.address_family();
    let mut found = Vec::new();
    let mut all = handle.route().get(filter).execute().fuse();
    while let Some(route) = all
        .try_next()
        .await
        .map_err(failed("list the pod's routes"))?
    {
        let in_table = route
            .attributes
            .contains(&RouteAttribute::Table(routing.table));
        if in_table && route.header.kind == RouteType::Local {
            found.push(route);
        }
    }
    Ok(found)
}

async fn add_rule(handle: &Handle, routing: Routing, family: Family) -> Result<(), RouteError> {
    let request = handle
        .rule()
        .add()
        .table_id(routing.table)
        .priority(routing.preference)
        .fw_mark(routing.mark)
        .action(RuleAction::ToTable);
    let mask = RuleAttribute::FwMask(routing.mask);
    let added = match family {
        Family::V4 => {
            let mut request = request.v4();
            request.message_mut().attributes.push(mask);
            request.execute().await
        }
        Family::V6 => {
            let mut request = request.v6();
            request.message_mut().attributes.push(mask);
            request.execute().await
        }
    };
    tolerate(added, libc::EEXIST).map_err(failed("add the steering rule"))
}

/// Devices that need the route: lo, and those that sockets may be bound to.
fn devices(view: &View) -> impl Iterator<Item = u32> {
    let own = view.interfaces.iter().map(|(index, _)| *index);
    std::iter::once(LOOPBACK_INDEX).chain(own)
}

fn is_through(route: &RouteMessage, device: u32) -> bool {
    route.attributes.contains(&RouteAttribute::Oif(device))
}

async fn add_route(
    handle: &Handle,
    routing: Routing,
    source: IpAddr,
    device: u32,
) -> Result<(), RouteError> {
    // Different metrics, or one route would replace the other. Loopback is preferred.
    let metric = METRIC + device;
    let message = match source {
        IpAddr::V4(source) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .pref_source(source)
            .table_id(routing.table)
            .output_interface(device)
            .priority(metric)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build(),
        IpAddr::V6(source) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .pref_source(source)
            .table_id(routing.table)
            .output_interface(device)
            .priority(metric)
            .kind(RouteType::Local)
            .build(),
    };
    // Replace, so that a source address that has changed is followed.
    let added = handle.route().add(message).replace().execute().await;
    tolerate(added, libc::EEXIST).map_err(failed("add the steering route"))
}

fn is_ours(rule: &RuleMessage, routing: Routing) -> bool {
    let has = |wanted: RuleAttribute| rule.attributes.contains(&wanted);
    has(RuleAttribute::FwMark(routing.mark))
        && has(RuleAttribute::FwMask(routing.mask))
        && table_of(rule) == routing.table
}

fn foreign_rule(rule: &RuleMessage, family: Family, routing: Routing) -> Option<ForeignRule> {
    let preference = number(rule, |attribute| {
        if let RuleAttribute::Priority(preference) = attribute {
            Some(*preference)
        } else {
            None
        }
    })
    .unwrap_or(0);
    // Preference 0 is the kernel's own rule for local addresses.
    let is_before = preference != 0 && preference < routing.preference;
    (is_before && !is_ours(rule, routing)).then(|| ForeignRule {
        family,
        preference,
        table: table_of(rule),
    })
}

fn table_of(rule: &RuleMessage) -> u32 {
    let table = number(rule, |attribute| {
        if let RuleAttribute::Table(table) = attribute {
            Some(*table)
        } else {
            None
        }
    });
    table.unwrap_or_else(|| rule.header.table.into())
}

fn number(rule: &RuleMessage, pick: impl Fn(&RuleAttribute) -> Option<u32>) -> Option<u32> {
    rule.attributes.iter().find_map(pick)
}

/// Metric of the routes, to which the device's index is added.
const METRIC: u32 = 100;
/// A local route through lo; lo has the same index in every namespace.
const LOOPBACK_INDEX: u32 = 1;

pub(super) fn failed(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> RouteError {
    move |source| RouteError::Netlink { step, source }
}

/// Turns one error number into success.
fn tolerate(outcome: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -errno => Ok(()),
        other => other,
    }
}
