//! What an original destination turns out to be.

use std::{sync::Arc, time::Duration};

use super::{Endpoint, EndpointSet, Meta, Protocol};

/// How to treat connections to one original destination.
#[derive(Clone, Debug)]
pub struct OutboundTarget {
    /// What the bytes are.
    pub protocol: Protocol,
    /// How long to look for the first bytes when `protocol` is to be detected.
    pub detect_timeout: Duration,
    /// The service's name and port, `web.shop.svc.cluster.local:80`, if it is one.
    pub authority: Option<Arc<str>>,
    /// The service or network that the configuration is attached to.
    pub parent: Meta,
    /// The route in use.
    pub route: Meta,
    /// The service that the route points at.
    pub backend: Meta,
    /// Where to go.
    pub destination: Destination,
    /// How long nothing may be ready before everything waiting is failed.
    pub failfast: Duration,
}

/// Where connections go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To one of a service's endpoints.
    Balance(Arc<EndpointSet>),
    /// To this one endpoint.
    Forward(Arc<Endpoint>),
    /// Nowhere; the reason, for people. HTTP gets 403, everything else is closed.
    Forbidden(&'static str),
}

impl OutboundTarget {
    /// Whether two targets say the same. Endpoint sets have to be the same set.
    pub fn is_same(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.detect_timeout == other.detect_timeout
            && self.authority == other.authority
            && self.parent == other.parent
            && self.route == other.route
            && self.backend == other.backend
            && self.failfast == other.failfast
            && match (&self.destination, &other.destination) {
                (Destination::Balance(one), Destination::Balance(two)) => Arc::ptr_eq(one, two),
                (Destination::Forward(one), Destination::Forward(two)) => one.is_same(two),
                (Destination::Forbidden(one), Destination::Forbidden(two)) => one == two,
                (
                    Destination::Balance(_) | Destination::Forward(_) | Destination::Forbidden(_),
                    _,
                ) => false,
            }
    }
}
