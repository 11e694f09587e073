//! The life of a request that leaves a pod.

use std::sync::Arc;

use http::{
    HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION, uri::Authority,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Instant;
use tracing::debug;

use super::{backend::Member, connection::Connection};
use crate::{
    discovery::model::{Destination, OutboundTarget},
    lb::Lease,
    policy::classify::is_grpc,
    respond::{Asker, Cause, respond},
    transport::{
        body::Body,
        exchange::{Exchange, error_label, reset_reason},
        headers::{
            Leaves, PROXY_CONNECTION, PROXY_ERROR, REQUIRE_ID, strip_request, strip_response,
        },
        orig_proto,
        pool::{Ready, SendError, Travel},
        serve::tunnel,
    },
};

/// Takes a request to an endpoint and its response back.
///
/// # Errors
/// When an HTTP/2 stream is to be reset the way the endpoint has reset it.
pub(super) async fn serve(
    mut request: Request<Incoming>,
    on: &Connection,
) -> Result<Response<Body>, hyper::Error> {
    let began = Instant::now();
    let pod = &on.outbound.pod;
    let to = Asker {
        version: request.version(),
        is_grpc: is_grpc(request.headers()),
        informed: true,
        was_carried: false,
    };
    let Some(_permit) = pod.limits.requests.acquire() else {
        return Ok(on.answer(Cause::LoadShed, to));
    };
    let leaves = match strip_request(&mut request) {
        Ok(leaves) => leaves,
        Err(error) => return Ok(on.answer(Cause::BadRequest(error.text()), to)),
    };
    let required = request.headers_mut().remove(REQUIRE_ID);
    let downstream = (leaves != Leaves::No).then(|| hyper::upgrade::on(&mut request));

    // Where to: an endpoint, and a connection to it.
    let Some(target) = on.backend.watched.load() else {
        return Ok(on.answer(Cause::Undiscovered, to));
    };
    let reached = match on.reach(&target, &request, leaves, required.as_ref()).await {
        Ok(reached) => reached,
        Err(cause) => return Ok(on.answer(cause, to)),
    };
    let Reached {
        member,
        lease,
        travel,
        connection,
    } = reached;

    // There: the request as the endpoint wants it.
    let carried = travel == Travel::Http2 && to.version < Version::HTTP_2;
    if let Some(authority) = &member.authority {
        orig_proto::set_authority(&mut request, authority);
    }
    if carried {
        orig_proto::upgrade(&mut request, || on.default_authority());
    }
    let mut exchange =
        Exchange::begin(&member.http, began, to.is_grpc).with_lease(lease, on.outbound.time(began));
    let sent = member.client.send(connection, request).await;

    // And back.
    let mut response = match sent {
        Ok(response) => response,
        Err(SendError::Lost(error)) => {
            exchange.fail_unanswered(error_label(&error));
            debug!(%error, "no response");
            if to.version == Version::HTTP_2 && !to.is_grpc && reset_reason(&error).is_some() {
                return Err(error);
            }
            return Ok(on.answer(Cause::Io, to));
        }
        Err(SendError::Open(error)) => {
            exchange.fail_unanswered("unclassified");
            return Ok(on.answer((&error).into(), to));
        }
    };
    if carried {
        orig_proto::restore(&mut response, to.version);
    }
    strip_response(&mut response, leaves);
    on.heed_proxy_headers(&mut response, &target, &member);
    exchange.head(response.status().as_u16(), to.version, response.headers());
    if let Some(downstream) = downstream {
        on.leave_http(downstream, &mut response, leaves);
    }
    if to.version < Version::HTTP_2 {
        *response.version_mut() = to.version;
    }
    Ok(response.map(|body| body.with_exchange(exchange)))
}

/// An endpoint with a connection to it.
struct Reached {
    member: Arc<Member>,
    lease: Lease,
    travel: Travel,
    connection: Ready,
}

impl Connection {
    /// Picks an endpoint and gets a connection to it, or to the next one: nothing of the request
    /// has been sent so far.
    async fn reach(
        &self,
        target: &Arc<OutboundTarget>,
        request: &Request<Incoming>,
        leaves: Leaves,
        required: Option<&HeaderValue>,
    ) -> Result<Reached, Cause> {
        loop {
            let (member, lease) = self.backend.pick(&self.outbound, target).await?;
            if required.is_some_and(|required| !member.is(required)) {
                return Err(Cause::RequireId);
            }
            let travel = travel(request, leaves, &member);
            let error = match member.client.acquire(travel).await {
                Ok(connection) => {
                    return Ok(Reached {
                        member,
                        lease,
                        travel,
                        connection,
                    });
                }
                Err(error) => error,
            };
            debug!(endpoint = %member.endpoint.addr, error = error.label(), "cannot be reached");
            let is_last = matches!(target.destination, Destination::Forward(_))
                || !error.is_passing() && !self.backend.has_ready();
            if is_last {
                return Err((&error).into());
            }
        }
    }

    fn answer(&self, cause: Cause, to: Asker) -> Response<Body> {
        if let Some(label) = cause.label() {
            self.outbound.pod.metrics.outbound_http_error(label);
        }
        debug!(destination = %self.destination, ?cause, "answered by the proxy");
        respond(cause, to)
    }

    /// For requests that name nobody.
    fn default_authority(&self) -> Authority {
        let text = self.destination.to_string();
        text.parse()
            .unwrap_or_else(|_error| Authority::from_static("unknown"))
    }

    /// Takes what the endpoint's proxy says to this one out of the response.
    fn heed_proxy_headers(
        &self,
        response: &mut Response<Body>,
        target: &OutboundTarget,
        member: &Member,
    ) {
        let headers = response.headers_mut();
        headers.remove(PROXY_ERROR);
        let Some(said) = headers.remove(PROXY_CONNECTION) else {
            return;
        };
        let is_forward = matches!(target.destination, Destination::Forward(_));
        if said == "close" && is_forward && member.is_meshed() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Joins both connections if the endpoint has agreed to leave HTTP.
    fn leave_http(&self, downstream: OnUpgrade, response: &mut Response<Body>, leaves: Leaves) {
        let agreed = match leaves {
            Leaves::No => false,
            Leaves::Upgrade => response.status() == StatusCode::SWITCHING_PROTOCOLS,
            Leaves::Connect => response.status().is_success(),
        };
        if agreed {
            let upstream = hyper::upgrade::on(response);
            drop(
                self.outbound
                    .pod
                    .connections
                    .spawn(tunnel(downstream, upstream)),
            );
        }
    }
}

/// How a request travels to an endpoint.
fn travel(request: &Request<Incoming>, leaves: Leaves, member: &Member) -> Travel {
    if request.version() == Version::HTTP_2 {
        return Travel::Http2;
    }
    if leaves == Leaves::No && member.carries && orig_proto::can_carry(request) {
        return Travel::Http2;
    }
    let names_host = request.headers().contains_key(http::header::HOST);
    match request.version() == Version::HTTP_11 && names_host {
        true => Travel::Http1,
        false => Travel::Http1Once,
    }
}
