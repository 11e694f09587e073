//! Connections that leave a pod: where to, as what, and who takes them.
//!
//! ```text
//! connection.rs   what was captured: refuse loops, find the target, detect the protocol
//!     http.rs     the life of a request
//!     tcp.rs      the life of a connection that is bytes
//!         backend.rs   the endpoints behind an original destination; picks one
//! ```
//! One [`Outbound`] per pod and worker: connections, pools and endpoints of it are used by that
//! worker's thread only, so that its locks are never waited for.

mod backend;
mod connection;
mod http;
mod tcp;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use self::backend::Backend;
use crate::{
    context::PodContext,
    lb::Time,
    sockets::listeners::Accepted,
    transport::{connector::Target, pool::Client},
};

/// One pod's way out, on one worker.
#[derive(Debug)]
pub struct Outbound {
    pod: Arc<PodContext>,
    /// The pod's token has a child on each worker: connections look at it whenever they wake, and
    /// should not touch what other workers touch.
    drain: CancellationToken,
    /// The moment that endpoint loads count time from.
    epoch: Instant,
    backends: Mutex<HashMap<SocketAddr, Arc<Backend>>>,
    clients: Mutex<HashMap<Target, Arc<Client>>>,
    /// Told when an endpoint that had failed can be reached again.
    recovered: Arc<Notify>,
}

impl Outbound {
    /// Makes the way out of a pod. All workers pass the same `epoch`.
    pub fn new(pod: Arc<PodContext>, epoch: Instant) -> Self {
        Self {
            drain: pod.drain.child_token(),
            pod,
            epoch,
            backends: Mutex::default(),
            clients: Mutex::default(),
            recovered: Arc::default(),
        }
    }

    /// Serves a captured connection until it ends.
    pub async fn serve(self: Arc<Self>, accepted: Accepted) {
        connection::serve(self, accepted).await;
    }

    /// Lets go of what nobody has used for a while. Called once a second.
    pub fn sweep(&self) {
        self.backends
            .lock()
            .retain(|_destination, backend| Arc::strong_count(backend) > 1 || !backend.sweep());
        self.clients.lock().retain(|_target, client| {
            client.sweep();
            if self.drain.is_cancelled() {
                client.close();
            }
            Arc::strong_count(client) > 1 || !client.is_idle()
        });
    }

    fn backend(&self, destination: SocketAddr) -> Arc<Backend> {
        let mut backends = self.backends.lock();
        let backend = backends.entry(destination).or_insert_with(|| {
            let discovery = &self.pod.discovery;
            let watched = discovery.outbound(&self.pod.workload.namespace, destination);
            Arc::new(Backend::new(watched))
        });
        Arc::clone(backend)
    }

    fn time(&self, instant: Instant) -> Time {
        instant.duration_since(self.epoch)
    }
}
