//! What one pod brings to every connection of it, on all workers.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    discovery::Discovery, identity, metrics::PodMetrics, policy::limit::Limits, sockets::Stock,
    workload::Workload,
};

/// One meshed pod, as the data path needs it.
#[derive(Debug)]
pub struct PodContext {
    /// Who it is and how it wants to be treated.
    pub workload: Arc<Workload>,
    /// Its certificate.
    pub identity: identity::Handle,
    /// Sockets in its network namespace.
    pub stock: Arc<Stock>,
    /// Its series.
    pub metrics: Arc<PodMetrics>,
    /// Where its connections may go and who may come.
    pub discovery: Discovery,
    /// Cancelled when the pod's connections are to finish what is open and take nothing new:
    /// the pod goes, or the agent does.
    pub drain: CancellationToken,
    /// Every connection of the pod. Whoever waits for it waits for all of them.
    pub connections: TaskTracker,
    /// How much it may have open.
    pub limits: Limits,
}
