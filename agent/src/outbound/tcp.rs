//! The life of a connection that is bytes: one endpoint, picked by how fast endpoints connect.

use tokio::time::Instant;
use tracing::debug;

use super::connection::Connection;
use crate::{
    discovery::model::Destination,
    respond::Cause,
    transport::{
        counted::{Opened, pass},
        io::Io,
    },
};

/// Connects to an endpoint and passes bytes both ways. Nothing is read before that, so that a
/// server which speaks first is heard at once.
pub(super) async fn serve(downstream: Io, source: Opened, on: &Connection) {
    let metrics = &on.outbound.pod.metrics;
    let upstream = match connect(on).await {
        Ok(upstream) => upstream,
        Err(cause) => {
            debug!(destination = %on.destination, ?cause, "connection refused");
            if let Some(label) = cause.label() {
                metrics.outbound_tcp_error(label, on.destination);
            }
            return;
        }
    };
    match pass((downstream, source), upstream).await {
        Ok(passed) => debug!(passed.forth, passed.back, "connection ended"),
        Err(error) => debug!(%error, "connection broke"),
    }
}

async fn connect(on: &Connection) -> Result<(Io, Opened), Cause> {
    let target = on.backend.watched.load().ok_or(Cause::Undiscovered)?;
    loop {
        let (member, lease) = on.backend.pick(&on.outbound, &target).await?;
        match member.client.open_bytes().await {
            Ok(connected) => {
                lease.finish(on.outbound.time(Instant::now()));
                return Ok(connected);
            }
            Err(error) if matches!(target.destination, Destination::Forward(_)) => {
                debug!(endpoint = %member.endpoint.addr, error = error.label(), "cannot be reached");
                return Err((&error).into());
            }
            Err(error) => {
                debug!(endpoint = %member.endpoint.addr, error = error.label(), "trying another");
            }
        }
    }
}
