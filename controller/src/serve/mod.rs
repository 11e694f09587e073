//! The gRPC services: from translations to streams.
//!
//! [`Hub`] owns the index and one `watch` value per thing that somebody asks for; a stream sends
//! its present value and then the latest one whenever it changes. A client that reads slowly
//! skips states, and holds nothing but its own place.

mod destination;
mod hub;
mod identity;
mod listen;
mod node;
mod policy;
mod stream;

use std::sync::Arc;

use linkerd2_proxy_api::{
    destination::destination_server::DestinationServer, identity::identity_server::IdentityServer,
    inbound::inbound_server_policies_server::InboundServerPoliciesServer,
    outbound::outbound_policies_server::OutboundPoliciesServer,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, service::Routes};
use weft_api::proto::node::node_server::NodeServer;

use crate::{ca::Ca, metrics::Metrics, tokens::JoinTokens, translate::Refused};

pub use hub::{Hub, View, Watched};
pub use listen::{Limits, Tls, serve};

/// What the services need.
#[derive(Clone)]
pub struct Context {
    /// Index and views.
    pub hub: Arc<Hub>,
    /// Issues certificates.
    pub ca: Arc<Ca>,
    /// Credentials of nodes.
    pub tokens: Arc<JoinTokens>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Suffix of service names.
    pub cluster_domain: Arc<str>,
    /// Ends streams when the process stops.
    pub stop: CancellationToken,
}

/// All services, to be served on every listener.
pub fn routes(context: &Context) -> Routes {
    let identity = identity::Service::new(context.clone());
    let policies = policy::Service::new(context.clone());
    Routes::new(DestinationServer::new(destination::Service::new(
        context.clone(),
    )))
    .add_service(IdentityServer::new(identity))
    .add_service(InboundServerPoliciesServer::new(policies.clone()))
    .add_service(OutboundPoliciesServer::new(policies))
    .add_service(NodeServer::new(node::Service::new(context.clone())))
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, refused.message)
    }
}
