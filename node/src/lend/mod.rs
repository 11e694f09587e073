//! Lends sockets to agents over a Unix SOCK_SEQPACKET: `weft.lend.v1` in the crate `weft-api`.
//!
//! ```text
//! pods ──announce, withdraw──▶ hub ──events──▶ peer (one task per agent) ──packets──▶ agent
//!   ▲                                            │
//!   └────── Lender: sockets, take back ──────────┘
//! ```
//! The hub knows every meshed pod and every connected agent; a peer speaks the protocol with one
//! agent; the server accepts. An agent that breaks the protocol is disconnected, and no other
//! notices. Nothing here enters namespaces or decides what is meshed.

mod hub;
pub mod packet;
mod peer;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

use std::{future::Future, os::fd::OwnedFd, pin::Pin};

pub use hub::{AgentStatus, Announced, Event, Hub};
pub use peer::LendError;
pub use server::{Config, Server};

use crate::pods::sockets::{Family, Kind};

/// A future of a trait that is used by `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a peer asks of whoever owns the pods.
pub trait Lender: Send + Sync {
    /// Makes tagged, unconnected sockets in the pod's namespace. The error is for the agent's log.
    fn lend(
        &self,
        uid: &str,
        family: Family,
        count: usize,
    ) -> BoxFuture<'_, Result<Vec<OwnedFd>, String>>;

    /// Takes listeners back that an agent holds. Those that are not the pod's are dropped.
    fn take_back(&self, uid: &str, listeners: Vec<(Kind, OwnedFd)>) -> BoxFuture<'_, ()>;
}
