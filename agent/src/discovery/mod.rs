//! Where connections may go and who may come: kept up to date by the controller.
//!
//! Keyed by (client namespace, original destination) outbound and (pod, port) inbound, shared by
//! all pods of the node where the answer is the same. Lookups never block a data worker: the first
//! one for a key starts a watch on the control runtime. What was known stays known while the
//! controller is away; what was never known stays unknown, and its connections fail.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use crate::workload::Workload;

mod bundle;
mod client;
mod controller;
mod convert;
mod defaults;
mod endpoints;
mod inbound;
pub mod model;
mod outbound;
mod report;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod tokens;
mod watched;

use self::model::{InboundServer, OutboundTarget};
pub use self::{
    client::{ControllerError, ControllerTls, channel},
    controller::{Controller, Settings},
    watched::Watched,
};

/// How long a new outbound connection may wait for its target to become known.
///
/// An unknown target is an error then (502 or 504, or a closed connection), never a plain forward:
/// it might be a meshed service, and nothing leaves the mesh silently.
pub const OUTBOUND_WAIT: Duration = Duration::from_secs(5);

/// How long to pass to [`Watched::ready`] for an inbound server. The value comes sooner: after one
/// second without an answer the pod's default policy is published.
pub const INBOUND_WAIT: Duration = Duration::from_secs(3);

/// Answers where a connection may go and who may come.
pub trait Source: Send + Sync {
    /// What `destination` is for clients of `namespace`. Starts a watch if there is none.
    fn outbound(
        &self,
        namespace: &Arc<str>,
        destination: SocketAddr,
    ) -> Arc<Watched<OutboundTarget>>;

    /// Who may reach `port` of the pod. Starts a watch if there is none.
    fn inbound(&self, workload: &Workload, port: u16) -> Arc<Watched<InboundServer>>;
}

/// Handle to discovery. Cheap to clone.
#[derive(Clone)]
pub struct Discovery(Arc<dyn Source>);

impl Discovery {
    /// Wraps a source of answers.
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self(source)
    }

    /// What `destination` is for clients of `namespace`.
    ///
    /// Keep the answer while connections need it and drop it then: a minute later the watch ends.
    pub fn outbound(
        &self,
        namespace: &Arc<str>,
        destination: SocketAddr,
    ) -> Arc<Watched<OutboundTarget>> {
        self.0.outbound(namespace, destination)
    }

    /// Who may reach `port` of the pod.
    pub fn inbound(&self, workload: &Workload, port: u16) -> Arc<Watched<InboundServer>> {
        self.0.inbound(workload, port)
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Discovery")
    }
}
