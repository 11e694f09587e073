//! Connections that come to a pod: who they are from, whether they may, and the application.
//!
//! ```text
//! connection.rs   what was steered here: policy of the port, TLS or plain, detect the protocol
//!   direct.rs     what came to the proxy's own port: TLS and a transport header are a must
//!     http.rs     the life of a request
//!     tcp.rs      the life of a connection that is bytes
//!         permit.rs   who may do what on one connection, decided once per policy
//! ```
//! One [`Inbound`] per pod and worker: its pools are used by that worker's thread only.

mod connection;
mod direct;
mod http;
mod permit;
mod tcp;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    context::PodContext,
    discovery::{Watched, model::InboundServer},
    metrics::TcpLabels,
    sockets::listeners::Accepted,
    transport::{
        connector::{Connector, Mode, Target},
        pool::Client,
    },
};

/// One pod's way in, on one worker.
#[derive(Debug)]
pub struct Inbound {
    pod: Arc<PodContext>,
    /// The pod's token has a child on each worker: connections look at it whenever they wake, and
    /// should not touch what other workers touch.
    drain: CancellationToken,
    applications: Mutex<HashMap<SocketAddr, Arc<Client>>>,
}

impl Inbound {
    /// Makes the way into a pod.
    pub fn new(pod: Arc<PodContext>) -> Self {
        Self {
            drain: pod.drain.child_token(),
            pod,
            applications: Mutex::default(),
        }
    }

    /// Serves a connection to the pod until it ends.
    pub async fn serve(self: Arc<Self>, accepted: Accepted) {
        connection::serve(self, accepted).await;
    }

    /// Closes connections that nobody has used for a while. Called once a second.
    pub fn sweep(&self) {
        self.applications.lock().retain(|_addr, client| {
            client.sweep();
            if self.drain.is_cancelled() {
                client.close();
            }
            Arc::strong_count(client) > 1 || !client.is_idle()
        });
    }

    /// Not kept here: whoever scans a pod's ports must not leave a watch for each behind.
    fn policy(&self, port: u16) -> Arc<Watched<InboundServer>> {
        self.pod.discovery.inbound(&self.pod.workload, port)
    }

    /// Connections to the application that listens there.
    fn application(&self, addr: SocketAddr) -> Arc<Client> {
        let pod = &self.pod;
        let mut applications = self.applications.lock();
        let client = applications.entry(addr).or_insert_with(|| {
            let connector = Connector {
                target: Target {
                    addr,
                    mode: Mode::Plain,
                },
                stock: Arc::clone(&pod.stock),
                identity: pod.identity.clone(),
                limit: pod.workload.settings.load().inbound_connect_timeout,
                metrics: pod.metrics.tcp(&TcpLabels::InboundDestination),
            };
            Arc::new(Client::new(
                connector,
                pod.connections.clone(),
                Arc::default(),
            ))
        });
        Arc::clone(client)
    }
}
