//! Client of weft-node: learns of pods, receives their sockets, asks for more.
//!
//! The connection may break at any time, because weft-node was restarted. Nothing that is open
//! is touched then: this connects again, offers back the listeners it holds, and compares what is
//! announced with what is known. Who reads the [`Event`]s sees differences only.

mod connection;
mod pods;

use std::{
    net::{IpAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_api::{
    model::{Pod, PodUid},
    proto::lend,
};
use weft_runtime::{backoff::Backoff, logging::report};

use self::{connection::Connection, pods::Pods};
use super::{Family, Lender, Stock};

/// Waits between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Events that were not read yet. When there are more, weft-node waits.
const EVENTS: usize = 256;
/// Requests that were not sent yet. When there are more, they fail and are repeated later.
const REQUESTS: usize = 1024;

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// Connections of the pod's applications; the local address is the original destination.
    Outbound(Family),
    /// Connections to the pod.
    Inbound(Family),
    /// The pod's admin port.
    Admin(Family),
}

/// What weft-node says.
#[derive(Debug)]
pub enum Event {
    /// A pod is meshed from here on, or its listeners or addresses are others than before: those
    /// given here replace all earlier ones.
    PodAdded {
        /// The pod's record.
        pod: Box<Pod>,
        /// The pod's addresses as the kernel has them.
        ips: Vec<IpAddr>,
        /// Where to accept. They do not block, and are shared with weft-node.
        listeners: Vec<(ListenerKind, TcpListener)>,
        /// Dial sockets; the same for the pod's whole life.
        stock: Arc<Stock>,
    },
    /// A pod's record may have changed; its sockets have not.
    PodChanged {
        /// The pod's record.
        pod: Box<Pod>,
    },
    /// A pod has gone, or is not meshed any more.
    PodRemoved {
        /// Which.
        uid: PodUid,
    },
    /// Every pod that is meshed now has been announced. [`Link::serving`] is to be called when
    /// connections are accepted. Comes again after each reconnect.
    SnapshotSent,
    /// A newer agent serves: accept nothing more, finish what is open, exit.
    Drain,
}

/// The client; [`Borrower::run`] is the task.
pub struct Borrower {
    path: PathBuf,
    pods: Pods,
    requests: mpsc::Receiver<lend::SocketsWanted>,
    serving: Arc<Notify>,
}

/// Speaks to weft-node on behalf of others. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Link {
    requests: mpsc::Sender<lend::SocketsWanted>,
    serving: Arc<Notify>,
}

impl Borrower {
    /// Makes a client of the socket at `path`, and where its events come out.
    pub fn new(path: impl Into<PathBuf>) -> (Self, Link, mpsc::Receiver<Event>) {
        let (events, received) = mpsc::channel(EVENTS);
        let (sender, requests) = mpsc::channel(REQUESTS);
        let serving = Arc::new(Notify::new());
        let link = Link {
            requests: sender,
            serving: Arc::clone(&serving),
        };
        let borrower = Self {
            path: path.into(),
            pods: Pods::new(events, Arc::new(link.clone())),
            requests,
            serving,
        };
        (borrower, link, received)
    }

    /// Connects, and connects again, until stopped.
    ///
    /// # Errors
    /// None: a weft-node that is not there is waited for.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        raise_descriptor_limit();
        // Boxed: packets and their control data make a large future, and there is one of it.
        stop.run_until_cancelled(Box::pin(self.keep_connected()))
            .await;
        Ok(())
    }

    async fn keep_connected(&mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, 0.5);
        loop {
            let error = match Connection::open(&self.path, &mut self.pods).await {
                Ok(connection) => {
                    backoff.reset();
                    info!(
                        generation = self.pods.generation(),
                        "connected to weft-node"
                    );
                    let requests = &mut self.requests;
                    connection
                        .serve(&mut self.pods, requests, &self.serving)
                        .await
                }
                Err(error) => error,
            };
            let wait = backoff.next(rand::random());
            warn!(socket = %self.path.display(), error = %report(&error), ?wait, "not connected to weft-node");
            self.pods.disconnected();
            // What was asked on the old connection makes no sense on the next one.
            while self.requests.try_recv().is_ok() {}
            self.serving.notified().now_or_never();
            tokio::time::sleep(wait).await;
        }
    }
}

/// Every pod costs descriptors by the dozen; the usual soft limit of 1,024 is there for programs
/// that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, current = ?limit.current, "limit of open descriptors cannot be raised");
    }
}

impl Link {
    /// Says that connections are accepted for the pods announced so far. To be called after each
    /// [`Event::SnapshotSent`], unless the agent drains. Never waits: who reads events and waited
    /// here for them to be sent on would wait for ever.
    pub fn serving(&self) {
        self.serving.notify_one();
    }
}

impl Lender for Link {
    fn ask(&self, uid: &PodUid, family: Family, count: u32) -> bool {
        let wanted = lend::SocketsWanted {
            uid: uid.to_string(),
            family: lend::Family::from(family).into(),
            count,
        };
        self.requests.try_send(wanted).is_ok()
    }
}

impl From<Family> for lend::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }
}

impl ListenerKind {
    fn from_proto(listener: lend::Listener) -> Option<Self> {
        Some(match listener {
            lend::Listener::Unspecified => return None,
            lend::Listener::OutboundV4 => Self::Outbound(Family::V4),
            lend::Listener::OutboundV6 => Self::Outbound(Family::V6),
            lend::Listener::InboundV4 => Self::Inbound(Family::V4),
            lend::Listener::InboundV6 => Self::Inbound(Family::V6),
            lend::Listener::AdminV4 => Self::Admin(Family::V4),
            lend::Listener::AdminV6 => Self::Admin(Family::V6),
        })
    }

    const fn to_proto(self) -> lend::Listener {
        match self {
            Self::Outbound(Family::V4) => lend::Listener::OutboundV4,
            Self::Outbound(Family::V6) => lend::Listener::OutboundV6,
            Self::Inbound(Family::V4) => lend::Listener::InboundV4,
            Self::Inbound(Family::V6) => lend::Listener::InboundV6,
            Self::Admin(Family::V4) => lend::Listener::AdminV4,
            Self::Admin(Family::V6) => lend::Listener::AdminV6,
        }
    }
}
