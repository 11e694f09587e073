//! Who may do what on one connection: decided once per policy, looked up by every request.
//!
//! Address and identity of a client stay the same for the life of its connection, so the answer
//! for each route changes only with the policy. Counters are resolved at the same moment.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::info;

use super::connection::Connection;
use crate::{
    discovery::model::{InboundRoute, InboundServer},
    metrics::{AuthzLabels, Counter, HttpMetrics, InboundLabels, RouteLabels, ServerLabels},
    policy::authz::{Decision, Reason, authorize},
};

/// Decisions for one connection, of the policy that was last seen.
#[derive(Debug, Default)]
pub(super) struct Permits(Mutex<Option<Arc<Decided>>>);

/// Decisions of one policy.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) server: Arc<InboundServer>,
    /// One for each of the server's routes.
    pub(super) routes: Vec<Route>,
    pub(super) not_found: Arc<Counter>,
}

/// Decision for one route.
#[derive(Debug)]
pub(super) enum Route {
    Allow {
        http: Arc<HttpMetrics>,
        count: Arc<Counter>,
    },
    Deny {
        reason: Reason,
        count: Arc<Counter>,
    },
}

impl Permits {
    /// The decisions of the policy as it is now.
    pub(super) fn of(&self, server: &Arc<InboundServer>, on: &Connection) -> Arc<Decided> {
        let mut known = self.0.lock();
        match &*known {
            Some(decided) if Arc::ptr_eq(&decided.server, server) => Arc::clone(decided),
            _ => {
                let decided = Arc::new(decide(server, on));
                *known = Some(Arc::clone(&decided));
                decided
            }
        }
    }
}

fn decide(server: &Arc<InboundServer>, on: &Connection) -> Decided {
    let labels = ServerLabels::new(&server.meta, on.target.port());
    let metrics = &on.inbound.pod.metrics;
    Decided {
        routes: server
            .routes
            .iter()
            .map(|route| decide_route(server, route, &labels, on))
            .collect(),
        not_found: metrics.http_route_not_found(on.target, &labels, &on.tls),
        server: Arc::clone(server),
    }
}

fn decide_route(
    server: &InboundServer,
    route: &InboundRoute,
    labels: &ServerLabels,
    on: &Connection,
) -> Route {
    let metrics = &on.inbound.pod.metrics;
    let authorizations = route
        .authorizations
        .iter()
        .chain(server.authorizations.iter());
    let route_labels = RouteLabels::from(&route.meta);
    match authorize(on.client.ip(), on.proof(), authorizations) {
        Decision::Allow(authorization) => {
            let labels = InboundLabels {
                target: on.target,
                tls: on.tls.clone(),
                server: labels.clone(),
                route: route_labels,
                authz: AuthzLabels::from(&authorization.meta),
            };
            Route::Allow {
                http: metrics.inbound_http(&labels),
                count: metrics.http_authz_allow(&labels),
            }
        }
        Decision::Deny(reason) => Route::Deny {
            reason,
            count: metrics.http_authz_deny(on.target, labels, &route_labels, &on.tls),
        },
    }
}

/// Says that a client was denied.
pub(super) fn log_denied(on: &Connection, server: &InboundServer, route: &str, reason: Reason) {
    info!(
        workload = %on.inbound.pod.workload.name,
        namespace = %on.inbound.pod.workload.namespace,
        server = %server.meta.name,
        route,
        client = %on.client,
        peer = on.client_name(),
        reason = reason.label(),
        "request denied"
    );
}
