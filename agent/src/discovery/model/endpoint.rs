//! Endpoints: addresses that can be dialled, and how.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_api::model::Identity;

use crate::{lb::Load, tls::ServerId};

/// Metric labels of an endpoint, with their prefix: `dst_namespace`, `dst_pod`, … in order.
pub type DstLabels = Arc<[(Arc<str>, Arc<str>)]>;

/// What the endpoint's proxy is known to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hint {
    /// Nothing is known: the client's protocol is used as it is.
    #[default]
    None,
    /// HTTP/2, also with HTTP/1 requests in it (`l5d-orig-proto`).
    H2,
    /// The port is opaque there: no session protocol in the transport header.
    Opaque,
}

/// One address that can be dialled.
///
/// Kept as the same `Arc` as long as nothing of it changes, so that pools and metric handles may
/// be keyed by it.
#[derive(Debug)]
pub struct Endpoint {
    /// Where the application listens.
    pub addr: SocketAddr,
    /// Whom to expect; `None` is a peer without mesh TLS.
    pub tls: Option<ServerId>,
    /// What the peer takes.
    pub hint: Hint,
    /// Dial this port of the peer with a transport header that names the real one.
    pub transport_port: Option<u16>,
    /// Replaces the request's authority; also goes into the transport header (gateways).
    pub authority_override: Option<Arc<str>>,
    /// Metric labels.
    pub labels: DstLabels,
    /// Load, shared by every pod of the node; survives a change of the rest.
    pub load: Arc<Load>,
}

impl Endpoint {
    /// An address of which nothing else is known: plain, without TLS, as the client asked for.
    pub fn plain(addr: SocketAddr) -> Self {
        Self {
            addr,
            tls: None,
            hint: Hint::None,
            transport_port: None,
            authority_override: None,
            labels: Arc::from([]),
            load: Arc::default(),
        }
    }

    /// Identity of the peer, if it has one.
    pub fn identity(&self) -> Option<&Identity> {
        self.tls.as_ref().map(|tls| &tls.identity)
    }

    /// Whether two descriptions of an endpoint say the same; load is not part of it.
    pub fn is_same(&self, other: &Self) -> bool {
        self.addr == other.addr
            && self.tls == other.tls
            && self.hint == other.hint
            && self.transport_port == other.transport_port
            && self.authority_override == other.authority_override
            && self.labels == other.labels
    }
}

/// One consistent view of a service's endpoints.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Grows with every change; 0 before the first answer.
    pub version: u64,
    /// Sorted by address.
    pub list: Vec<Arc<Endpoint>>,
    /// Whether the service exists; `None` if nobody has said so yet.
    pub exists: Option<bool>,
}

/// The endpoints of an authority as they change; shared by every pod of the node.
///
/// The watch behind it runs for as long as somebody holds the set.
#[derive(Debug)]
pub struct EndpointSet {
    authority: Arc<str>,
    endpoints: ArcSwap<Endpoints>,
    changed: watch::Sender<u64>,
    _watch: Option<tokio_util::sync::DropGuard>,
}

impl EndpointSet {
    /// Makes an empty set. `watch` is dropped with it, which ends the watch that feeds it.
    pub(crate) fn new(authority: Arc<str>, watch: Option<tokio_util::sync::DropGuard>) -> Self {
        Self {
            authority,
            endpoints: ArcSwap::default(),
            changed: watch::Sender::new(0),
            _watch: watch,
        }
    }

    /// Makes a set that never changes by itself.
    pub fn fixed(authority: &str, endpoints: Vec<Endpoint>) -> Self {
        let set = Self::new(authority.into(), None);
        set.publish(endpoints.into_iter().map(Arc::new).collect(), Some(true));
        set
    }

    /// Name and port that the endpoints belong to.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    /// The present view. Never waits.
    pub fn load(&self) -> arc_swap::Guard<Arc<Endpoints>> {
        self.endpoints.load()
    }

    /// Tells of changes: the value is the version of the view.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Replaces the view.
    pub fn publish(&self, mut list: Vec<Arc<Endpoint>>, exists: Option<bool>) {
        list.sort_by_key(|endpoint| endpoint.addr);
        let version = self.endpoints.load().version + 1;
        self.endpoints.store(Arc::new(Endpoints {
            version,
            list,
            exists,
        }));
        self.changed.send_replace(version);
    }
}
