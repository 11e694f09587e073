//! What enrolment does inside a pod's network namespace, behind a seam so that its order can be
//! tested without namespaces.
//!
//! [`Namespaces`] is the one real implementation. Every call blocks; none leaves the calling thread
//! in another namespace.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use socket2::Socket;

use super::{
    cut,
    datapath::Datapath,
    legacy::{self, Connection},
    netns::{Entrance, Netns, NetnsError},
    proof::{self, ProofError},
    rules::{self, ForeignRule, RouteError, Routing},
    sockets::{self, Family, Kind, Ports},
    view::{self, View},
};
use crate::kernel::KernelError;

/// Why something inside a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Routing cannot be read or changed.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A listener cannot be made.
    #[error("listen on {address} in the pod (is the port taken by the application?)")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Another socket cannot be made or read.
    #[error("{step}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Inbound steering cannot be attached.
    #[error("attach inbound steering to the pod's interface {ifindex}")]
    Attach {
        /// Index of the interface.
        ifindex: u32,
        /// Why not.
        source: KernelError,
    },
    /// Steering does not work.
    #[error("steering is not proven")]
    Proof(#[from] ProofError),
}

/// One listener, as far as proving is concerned.
pub struct Proving {
    /// The listener.
    pub listener: Socket,
    /// Its family.
    pub family: Family,
    /// Whether no agent has it yet, so that its queue is ours.
    pub is_fresh: bool,
}

/// For whom inbound steering is attached.
#[derive(Clone)]
pub struct Steering {
    /// The kernel side.
    pub datapath: Arc<dyn Datapath>,
    /// The pod's uid.
    pub uid: Arc<str>,
    /// Its slot.
    pub slot: u32,
    /// Cookie of its namespace.
    pub cookie: u64,
}

/// What can be done inside a pod.
pub trait Inside: Send + Sync {
    /// Opens the namespace; refuses the node's own.
    fn open(&self, path: &Path) -> Result<Netns, InsideError>;
    /// The namespace's cookie, interfaces and addresses.
    fn look(&self, netns: &Netns) -> Result<(u64, View), InsideError>;
    /// Makes bound sockets that do not listen yet.
    fn bind(
        &self,
        netns: &Netns,
        kinds: &[Kind],
        ports: Ports,
    ) -> Result<Vec<(Kind, Socket)>, InsideError>;
    /// Adds rule and route.
    fn route(&self, netns: &Netns, view: &View) -> Result<Vec<ForeignRule>, InsideError>;
    /// Whether rule and route are there.
    fn is_routed(&self, netns: &Netns, view: &View) -> Result<bool, InsideError>;
    /// Removes rule and route.
    fn unroute(&self, netns: &Netns) -> Result<(), InsideError>;
    /// Attaches inbound steering to interfaces.
    fn steer_inbound(
        &self,
        netns: &Netns,
        steering: &Steering,
        interfaces: &[u32],
    ) -> Result<(), InsideError>;
    /// Proves that marked connections reach the listener, unless all are left out of capture.
    fn prove(&self, netns: &Netns, proving: &Proving, skipped: &[IpNet])
    -> Result<(), InsideError>;
    /// Makes unconnected sockets.
    fn dial(&self, netns: &Netns, family: Family, count: usize)
    -> Result<Vec<Socket>, InsideError>;
    /// Lists the pod's connections.
    fn connections(
        &self,
        netns: &Netns,
        own: &[IpAddr],
    ) -> Result<HashSet<Connection>, InsideError>;
    /// The captured connections that an agent holds.
    fn captured(&self, netns: &Netns, own: &[IpAddr]) -> Result<Vec<Connection>, InsideError>;
    /// Ends connections, at both ends; returns how many.
    fn cut(&self, netns: &Netns, connections: Vec<Connection>) -> Result<usize, InsideError>;
}

/// Real namespaces.
pub struct Namespaces {
    entrance: Entrance,
    routing: Routing,
}

impl Namespaces {
    /// Makes the way in.
    pub fn new(routing: Routing) -> Self {
        Self {
            entrance: Entrance::new(),
            routing,
        }
    }
}

impl Inside for Namespaces {
    fn open(&self, path: &Path) -> Result<Netns, InsideError> {
        Ok(self.entrance.open(path)?)
    }

    fn look(&self, netns: &Netns) -> Result<(u64, View), InsideError> {
        let looked = self.entrance.run(netns, || {
            let any = sockets::dial(Family::V4).or_else(|_no_v4| sockets::dial(Family::V6));
            let cookie = any.and_then(|socket| sockets::netns_cookie(socket.as_fd()));
            (cookie, view::look())
        })?;
        let cookie = looked
            .0
            .map_err(failed("read the network namespace's cookie"))?;
        Ok((cookie, looked.1?))
    }

    fn bind(
        &self,
        netns: &Netns,
        kinds: &[Kind],
        ports: Ports,
    ) -> Result<Vec<(Kind, Socket)>, InsideError> {
        let kinds = kinds.to_vec();
        self.entrance.run(netns, move || {
            let mut bound = Vec::with_capacity(kinds.len());
            for kind in kinds {
                match sockets::bound(kind, ports) {
                    Ok(socket) => bound.push((kind, socket)),
                    // IPv6 is compiled out or switched off in this namespace.
                    Err(error) if kind.family() == Family::V6 && is_absent(&error) => {}
                    Err(source) => {
                        return Err(InsideError::Listen {
                            address: kind.address(ports),
                            source,
                        });
                    }
                }
            }
            Ok(bound)
        })?
    }

    fn route(&self, netns: &Netns, view: &View) -> Result<Vec<ForeignRule>, InsideError> {
        let (routing, view) = (self.routing, view.clone());
        Ok(self
            .entrance
            .run(netns, move || rules::add(routing, &view))??)
    }

    fn is_routed(&self, netns: &Netns, view: &View) -> Result<bool, InsideError> {
        let (routing, view) = (self.routing, view.clone());
        Ok(self
            .entrance
            .run(netns, move || rules::is_routed(routing, &view))??)
    }

    fn unroute(&self, netns: &Netns) -> Result<(), InsideError> {
        let routing = self.routing;
        Ok(self.entrance.run(netns, move || rules::remove(routing))??)
    }

    fn steer_inbound(
        &self,
        netns: &Netns,
        steering: &Steering,
        interfaces: &[u32],
    ) -> Result<(), InsideError> {
        let (steering, interfaces) = (steering.clone(), interfaces.to_vec());
        self.entrance.run(netns, move || {
            for ifindex in interfaces {
                steering
                    .datapath
                    .attach_inbound(&steering.uid, steering.slot, steering.cookie, ifindex)
                    .map_err(|source| InsideError::Attach { ifindex, source })?;
            }
            Ok(())
        })?
    }

    fn prove(
        &self,
        netns: &Netns,
        proving: &Proving,
        skipped: &[IpNet],
    ) -> Result<(), InsideError> {
        let Some(destination) = proof::destination(proving.family, skipped) else {
            return Ok(());
        };
        let mark = self.routing.mark;
        let test = self
            .entrance
            .run(netns, move || proof::start(mark, destination))??;
        if proving.is_fresh {
            proof::finish(&test, destination, &proving.listener)?;
        } else {
            proof::connected(&test, destination)?;
        }
        Ok(())
    }

    fn dial(
        &self,
        netns: &Netns,
        family: Family,
        count: usize,
    ) -> Result<Vec<Socket>, InsideError> {
        self.entrance
            .run(netns, move || {
                (0..count)
                    .map(|_| sockets::dial(family))
                    .collect::<io::Result<_>>()
            })?
            .map_err(failed("make a dial socket in the pod"))
    }

    fn connections(
        &self,
        netns: &Netns,
        own: &[IpAddr],
    ) -> Result<HashSet<Connection>, InsideError> {
        let own = own.to_vec();
        self.entrance
            .run(netns, move || legacy::list(&own))?
            .map_err(failed("list the pod's connections"))
    }

    fn captured(&self, netns: &Netns, own: &[IpAddr]) -> Result<Vec<Connection>, InsideError> {
        let own = own.to_vec();
        self.entrance
            .run(netns, move || legacy::captured(&own))?
            .map_err(failed("list the pod's connections"))
    }

    fn cut(&self, netns: &Netns, connections: Vec<Connection>) -> Result<usize, InsideError> {
        self.entrance
            .run(netns, move || cut::cut(&connections))?
            .map_err(failed(
                "destroy connections (needs CONFIG_INET_DIAG_DESTROY)",
            ))
    }
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> InsideError {
    move |source| InsideError::Socket { step, source }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
