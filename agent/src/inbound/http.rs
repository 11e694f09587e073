//! The life of a request that comes to a pod.

use http::{Request, Response, StatusCode, Version, header::HOST};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Instant;
use tracing::debug;

use super::{
    connection::Connection,
    permit::{Route, log_denied},
};
use crate::{
    metrics::ServerLabels,
    policy::classify::is_grpc,
    respond::{Asker, Cause, respond},
    route,
    transport::{
        body::Body,
        exchange::{Exchange, error_label, reset_reason},
        headers::{CLIENT_ID, Leaves, strip_request, strip_response},
        orig_proto,
        pool::{SendError, Travel},
        serve::tunnel,
    },
};

/// Takes a request to the application, if its client may, and the response back.
///
/// # Errors
/// When an HTTP/2 stream is to be reset the way the application has reset it.
pub(super) async fn serve(
    mut request: Request<Incoming>,
    on: &Connection,
) -> Result<Response<Body>, hyper::Error> {
    let began = Instant::now();
    let pod = &on.inbound.pod;
    let version = request.version();
    let was_carried = orig_proto::downgrade(&mut request);
    let to = Asker {
        version,
        is_grpc: is_grpc(request.headers()),
        informed: on.client_id.is_some(),
        was_carried,
    };
    let Some(_permit) = pod.limits.requests.acquire() else {
        return Ok(on.answer(Cause::LoadShed, to));
    };
    let leaves = match strip_request(&mut request) {
        Ok(leaves) => leaves,
        Err(error) => return Ok(on.answer(Cause::BadRequest(error.text()), to)),
    };

    // May it?
    let Some(server) = on.policy.load() else {
        return Ok(on.answer(Cause::Undiscovered, to));
    };
    let decided = on.permits.of(&server, on);
    let Some(index) = route::find(&server.routes, request.method(), request.uri().path()) else {
        decided.not_found.increment();
        return Ok(on.answer(Cause::NoRoute, to));
    };
    let metrics = match &decided.routes[index] {
        Route::Allow { http, count } => {
            count.increment();
            http
        }
        Route::Deny { reason, count } => {
            count.increment();
            log_denied(on, &server, &server.routes[index].meta.name, *reason);
            return Ok(on.answer(Cause::Unauthorized, to));
        }
    };

    // To the application, which learns who the client is.
    request.headers_mut().remove(CLIENT_ID);
    if let Some(client_id) = &on.client_id {
        request.headers_mut().insert(CLIENT_ID, client_id.clone());
    }
    let downstream = (leaves != Leaves::No).then(|| hyper::upgrade::on(&mut request));
    let mut exchange = Exchange::begin(metrics, began, to.is_grpc);
    let sent = match on.application.acquire(travel(&request)).await {
        Ok(connection) => on.application.send(connection, request).await,
        Err(error) => Err(error.into()),
    };

    // And back.
    let mut response = match sent {
        Ok(response) => response,
        Err(SendError::Lost(error)) => {
            exchange.fail_unanswered(error_label(&error));
            debug!(%error, "no response");
            let was_reset = version == Version::HTTP_2 && reset_reason(&error).is_some();
            if was_reset && !to.is_grpc && !was_carried {
                return Err(error);
            }
            return Ok(on.answer(Cause::Io, to));
        }
        Err(SendError::Open(error)) => {
            exchange.fail_unanswered("unclassified");
            debug!(error = error.label(), "application cannot be reached");
            return Ok(on.answer((&error).into(), to));
        }
    };
    strip_response(&mut response, leaves);
    exchange.head(response.status().as_u16(), version, response.headers());
    if let Some(downstream) = downstream {
        on.leave_http(downstream, &mut response, leaves);
    }
    if was_carried {
        orig_proto::mark(&mut response);
    } else if version < Version::HTTP_2 {
        *response.version_mut() = version;
    }
    Ok(response.map(|body| body.with_exchange(exchange)))
}

/// How a request travels to the application: as it came.
fn travel(request: &Request<Incoming>) -> Travel {
    if request.version() == Version::HTTP_2 {
        return Travel::Http2;
    }
    match request.version() == Version::HTTP_11 && request.headers().contains_key(HOST) {
        true => Travel::Http1,
        false => Travel::Http1Once,
    }
}

impl Connection {
    fn answer(&self, cause: Cause, to: Asker) -> Response<Body> {
        if let Some(label) = cause.label()
            && let Some(server) = self.policy.load()
        {
            let server = ServerLabels::new(&server.meta, self.target.port());
            let metrics = &self.inbound.pod.metrics;
            metrics.inbound_http_error(label, self.target, &server);
        }
        debug!(target = %self.target, ?cause, "answered by the proxy");
        respond(cause, to)
    }

    /// Joins both connections if the application has agreed to leave HTTP.
    fn leave_http(&self, downstream: OnUpgrade, response: &mut Response<Body>, leaves: Leaves) {
        let agreed = match leaves {
            Leaves::No => false,
            Leaves::Upgrade => response.status() == StatusCode::SWITCHING_PROTOCOLS,
            Leaves::Connect => response.status().is_success(),
        };
        if agreed {
            let upstream = hyper::upgrade::on(response);
            drop(
                self.inbound
                    .pod
                    .connections
                    .spawn(tunnel(downstream, upstream)),
            );
        }
    }
}
