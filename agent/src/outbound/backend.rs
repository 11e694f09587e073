//! The endpoints behind one original destination, and which of them is next.
//!
//! Follows the endpoint set by comparing versions when it is used: no task, no channel. An
//! endpoint that could not be reached is left alone for a while; when none is left, callers wait
//! until one may be tried again, until endpoints change, or until nothing was ready for the
//! failfast time: then everything fails at once, as long as that lasts.

use std::{
    num::NonZeroU16,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use arc_swap::Guard;
use http::{HeaderValue, uri::Authority};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Outbound;
use crate::{
    discovery::{
        Watched,
        model::{Destination, Endpoint, EndpointSet, Endpoints, Hint, OutboundTarget},
    },
    lb::{self, Lease},
    metrics::{ClientTls, HttpMetrics, NoClientTls, OutboundLabels, TcpLabels},
    respond::Cause,
    transport::{
        connector::{Connector, Mode, Target},
        pool::Client,
    },
};

/// Sweeps after which a destination that nobody used is forgotten.
const IDLE_SWEEPS: u32 = 60;

/// What is behind one original destination.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) watched: Arc<Watched<OutboundTarget>>,
    members: Mutex<Members>,
    idle_sweeps: AtomicU32,
}

/// Endpoints with their connections, as of one version of the target and of its endpoint set.
#[derive(Debug, Default)]
struct Members {
    target: Option<Arc<OutboundTarget>>,
    endpoints: Option<Arc<Endpoints>>,
    list: Vec<Arc<Member>>,
    unready_since: Option<Instant>,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) client: Arc<Client>,
    pub(super) http: Arc<HttpMetrics>,
    /// Takes HTTP/1 in HTTP/2.
    pub(super) carries: bool,
    /// Replaces the authority of requests.
    pub(super) authority: Option<Authority>,
}

/// What a look at the members found.
enum Look {
    Picked(Arc<Member>, Lease),
    /// Nothing is ready. Look again then, but for nobody longer than until the deadline.
    Wait {
        again: Instant,
        deadline: Instant,
    },
}

impl Backend {
    pub(super) fn new(watched: Arc<Watched<OutboundTarget>>) -> Self {
        Self {
            watched,
            members: Mutex::default(),
            idle_sweeps: AtomicU32::new(0),
        }
    }

    /// Whether it has been idle for long enough to be forgotten.
    pub(super) fn sweep(&self) -> bool {
        self.idle_sweeps.fetch_add(1, Relaxed) >= IDLE_SWEEPS
    }

    /// Picks an endpoint, waiting for one if need be.
    ///
    /// # Errors
    /// When nothing was ready for the failfast time, or nothing may go there.
    pub(super) async fn pick(
        &self,
        outbound: &Outbound,
        target: &Arc<OutboundTarget>,
    ) -> Result<(Arc<Member>, Lease), Cause> {
        self.idle_sweeps.store(0, Relaxed);
        let set = match &target.destination {
            Destination::Forbidden(reason) => return Err(Cause::Forbidden(reason)),
            Destination::Forward(endpoint) => return Ok(self.forward(outbound, target, endpoint)),
            Destination::Balance(set) => set,
        };
        if let Look::Picked(member, lease) = self.look(outbound, target, set) {
            return Ok((member, lease));
        }
        loop {
            // Listens before it looks, so that nothing happens in between.
            let mut changed = set.subscribe();
            let mut recovered = pin!(outbound.recovered.notified());
            recovered.as_mut().enable();
            let (again, deadline) = match self.look(outbound, target, set) {
                Look::Picked(member, lease) => return Ok((member, lease)),
                Look::Wait { again, deadline } => (again, deadline),
            };
            if Instant::now() >= deadline {
                return Err(Cause::Failfast);
            }
            tokio::select! {
                () = tokio::time::sleep_until(again.min(deadline)) => {}
                Ok(()) = changed.changed() => {}
                () = recovered => {}
            }
        }
    }

    /// Whether an endpoint is left that may be tried now.
    pub(super) fn has_ready(&self) -> bool {
        let now = Instant::now();
        let members = self.members.lock();
        members
            .list
            .iter()
            .any(|member| !member.client.health().is_failing(now))
    }

    fn forward(
        &self,
        outbound: &Outbound,
        target: &Arc<OutboundTarget>,
        endpoint: &Arc<Endpoint>,
    ) -> (Arc<Member>, Lease) {
        let mut members = self.members.lock();
        members.follow(outbound, target, None);
        let member = match members.list.first() {
            Some(member) => Arc::clone(member),
            None => {
                let member = Member::new(outbound, target, endpoint);
                members.list.push(Arc::clone(&member));
                member
            }
        };
        let lease = member.endpoint.load.lease(outbound.time(Instant::now()));
        (member, lease)
    }

    fn look(&self, outbound: &Outbound, target: &Arc<OutboundTarget>, set: &EndpointSet) -> Look {
        let mut members = self.members.lock();
        members.follow(outbound, target, Some(set.load()));
        let now = Instant::now();
        let time = outbound.time(now);
        let draws = (rand::random(), rand::random());
        let picked = lb::pick(members.list.len(), draws, |index| {
            let member = &members.list[index];
            let usable = !member.client.health().is_failing(now);
            usable.then(|| member.endpoint.load.cost(time))
        });
        if let Some(index) = picked {
            let member = Arc::clone(&members.list[index]);
            // One that has failed before is tried by one caller; the others still wait for it.
            let limit = member.client.connector().limit;
            if !member.client.health().claim(now, limit) {
                members.unready_since = None;
            }
            let lease = member.endpoint.load.lease(time);
            return Look::Picked(member, lease);
        }
        let deadline = *members.unready_since.get_or_insert(now) + target.failfast;
        let retries = members
            .list
            .iter()
            .filter_map(|m| m.client.health().retry_at());
        let again = retries.min().unwrap_or(deadline);
        Look::Wait { again, deadline }
    }
}

impl Members {
    /// Makes the members those of the target and its endpoints, keeping those that stay the same.
    fn follow(
        &mut self,
        outbound: &Outbound,
        target: &Arc<OutboundTarget>,
        endpoints: Option<Guard<Arc<Endpoints>>>,
    ) {
        let same_target = self
            .target
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, target));
        if !same_target {
            *self = Self {
                target: Some(Arc::clone(target)),
                unready_since: self.unready_since,
                ..Self::default()
            };
        }
        let Some(endpoints) = endpoints else { return };
        if self
            .endpoints
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &endpoints))
        {
            return;
        }
        let known = std::mem::take(&mut self.list);
        self.list = endpoints
            .list
            .iter()
            .map(|endpoint| {
                let same = known
                    .iter()
                    .find(|member| Arc::ptr_eq(&member.endpoint, endpoint));
                same.map_or_else(|| Member::new(outbound, target, endpoint), Arc::clone)
            })
            .collect();
        self.endpoints = Some(Guard::into_inner(endpoints));
    }
}

impl Member {
    fn new(outbound: &Outbound, target: &OutboundTarget, endpoint: &Arc<Endpoint>) -> Arc<Self> {
        let pod = &outbound.pod;
        let is_local = pod.workload.is_local(endpoint.addr.ip());
        let tls = match &endpoint.tls {
            _ if is_local => ClientTls::None(NoClientTls::Loopback),
            Some(server) => ClientTls::Established(server.identity.clone()),
            None => ClientTls::None(NoClientTls::NotProvidedByServiceDiscovery),
        };
        let labels = OutboundLabels {
            authority: target.authority.clone(),
            target: endpoint.addr,
            tls,
            dst: Arc::clone(&endpoint.labels),
        };
        let authority: Option<Authority> = endpoint
            .authority_override
            .as_ref()
            .filter(|_| !is_local)
            .and_then(|name| name.parse().ok());
        let http = pod.metrics.outbound_http(&labels);
        let target = dial_target(endpoint, is_local, authority.as_ref());
        let client = Arc::clone(outbound.clients.lock().entry(target).or_insert_with_key(
            |target| {
                let connector = Connector {
                    target: target.clone(),
                    stock: Arc::clone(&pod.stock),
                    identity: pod.identity.clone(),
                    limit: pod.workload.settings.load().outbound_connect_timeout,
                    metrics: pod.metrics.tcp(&TcpLabels::OutboundDestination(labels)),
                };
                let recovered = Arc::clone(&outbound.recovered);
                Arc::new(Client::new(connector, pod.connections.clone(), recovered))
            },
        ));
        Arc::new(Self {
            endpoint: Arc::clone(endpoint),
            client,
            http,
            carries: endpoint.hint == Hint::H2 && !is_local,
            authority,
        })
    }

    /// Whether the endpoint's identity is the one that a request asks for.
    pub(super) fn is(&self, wanted: &HeaderValue) -> bool {
        match &self.client.connector().target.mode {
            Mode::Plain => false,
            Mode::Tls(server) | Mode::Tagged { server, .. } => {
                server.identity.as_str().as_bytes() == wanted.as_bytes()
            }
        }
    }

    /// Whether the peer is reached over mesh TLS.
    pub(super) fn is_meshed(&self) -> bool {
        self.client.connector().target.mode != Mode::Plain
    }
}

/// Where to dial for an endpoint, and how.
fn dial_target(endpoint: &Endpoint, is_local: bool, authority: Option<&Authority>) -> Target {
    let mut addr = endpoint.addr;
    let server = endpoint.tls.clone().filter(|_| !is_local);
    let wanted_port = authority
        .and_then(Authority::port_u16)
        .unwrap_or(addr.port());
    let mode = match (server, NonZeroU16::new(wanted_port)) {
        (None, _) => Mode::Plain,
        (Some(server), Some(port)) if endpoint.transport_port.is_some() || authority.is_some() => {
            addr.set_port(endpoint.transport_port.unwrap_or(addr.port()));
            let name = authority.map(|authority| authority.host().into());
            Mode::Tagged { server, port, name }
        }
        (Some(server), _) => Mode::Tls(server),
    };
    Target { addr, mode }
}
