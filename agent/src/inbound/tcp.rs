//! The life of a connection that is bytes: authorized when it opens and whenever the policy
//! changes, and cut when it may no longer be.

use std::sync::Arc;

use tracing::{debug, info};

use super::{connection::Connection, permit::log_denied};
use crate::{
    discovery::model::InboundServer,
    metrics::{AuthzLabels, ServerLabels},
    policy::authz::{Decision, Reason, authorize},
    respond::Cause,
    transport::{
        counted::{Opened, pass},
        io::Io,
    },
};

/// Connects to the application and passes bytes both ways. Nothing is read before that, so that
/// an application which speaks first is heard at once.
pub(super) async fn serve(downstream: Io, source: Opened, on: &Connection) {
    let metrics = &on.inbound.pod.metrics;
    let mut changes = on.policy.subscribe();
    changes.mark_unchanged();
    let Some(server) = on.policy.load() else {
        return;
    };
    let labels = ServerLabels::new(&server.meta, on.target.port());
    match authorize(on.client.ip(), on.proof(), server.authorizations.iter()) {
        Decision::Allow(authorization) => {
            let authorization = AuthzLabels::from(&authorization.meta);
            let allowed = metrics.tcp_authz_allow(on.target, &labels, &authorization, &on.tls);
            allowed.increment();
        }
        Decision::Deny(reason) => {
            metrics
                .tcp_authz_deny(on.target, &labels, &on.tls)
                .increment();
            log_denied(on, &server, "", reason);
            return;
        }
    }
    let upstream = match on.application.open_bytes().await {
        Ok(upstream) => upstream,
        Err(error) => {
            debug!(target = %on.target, error = error.label(), "application cannot be reached");
            let label = Cause::from(&error).label().unwrap_or("unexpected");
            return metrics.inbound_tcp_error(label, on.target);
        }
    };
    let denied = async {
        loop {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some((server, reason)) = denied_now(on) {
                break (server, reason);
            }
        }
    };
    tokio::select! {
        passed = pass((downstream, source), upstream) => match passed {
            Ok(passed) => debug!(passed.forth, passed.back, "connection ended"),
            Err(error) => debug!(%error, "connection broke"),
        },
        (server, reason) = denied => {
            let labels = ServerLabels::new(&server.meta, on.target.port());
            metrics.tcp_authz_terminate(on.target, &labels, &on.tls).increment();
            info!(client = %on.client, reason = reason.label(), "connection cut by a policy change");
        }
    }
}

fn denied_now(on: &Connection) -> Option<(Arc<InboundServer>, Reason)> {
    let server = on.policy.load()?;
    let decision = authorize(on.client.ip(), on.proof(), server.authorizations.iter());
    match decision {
        Decision::Allow(_) => None,
        Decision::Deny(reason) => Some((server, reason)),
    }
}
