//! Serves HTTP on a connection that was accepted, until it ends or is drained.
//!
//! Draining loses no request. HTTP/2 says GOAWAY. HTTP/1 says `connection: close` with its next
//! response, and an idle connection stays for a while: its client may be sending a request at
//! this moment, and proxies among clients let go of idle connections after three seconds.
//!
//! No timers of hyper's: its header timeout costs about 2 µs per request.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{body::Body, counted::Counted, exec::Exec};

/// How long an idle HTTP/1 connection stays when its pod drains.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// Windows of HTTP/2, as Linkerd sets them.
const STREAM_WINDOW: u32 = 65_535;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams of one HTTP/2 connection: all requests of a peer's pod share one.
const MAX_STREAMS: u32 = 1_000;
/// Longest header list that is taken in HTTP/2; more gets 431.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Bytes in flight per direction once a connection has left HTTP.
const TUNNEL_BUFFER: usize = 16 * 1024;

/// Serves HTTP/1, with upgrades.
pub async fn http1<S, F>(io: Counted, drain: &CancellationToken, serve: S)
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, hyper::Error>>,
{
    let draining = AtomicBool::new(false);
    let service = service_fn(|request| {
        let answer = serve(request);
        let draining = &draining;
        async move {
            let mut response = answer.await?;
            if draining.load(Relaxed) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, hyper::Error>(response)
        }
    });
    let connection = http1::Builder::new()
        // Applications say themselves what time it is; what they leave out stays out.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        () = drain.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            draining.store(true, Relaxed);
            match tokio::time::timeout(IDLE_GRACE, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_elapsed) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "HTTP/1 connection ended");
    }
}

/// Serves HTTP/2. Streams run as tasks of `tasks`.
pub async fn http2<S, F>(io: Counted, drain: &CancellationToken, tasks: &TaskTracker, serve: S)
where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<Body>, hyper::Error>> + Send + 'static,
{
    let connection = http2::Builder::new(Exec::new(tasks.clone()))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service_fn(serve));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "HTTP/2 connection ended");
    }
}

/// Passes bytes both ways once both sides have left HTTP.
pub async fn tunnel(downstream: hyper::upgrade::OnUpgrade, upstream: hyper::upgrade::OnUpgrade) {
    let (downstream, upstream) = match tokio::try_join!(downstream, upstream) {
        Ok(both) => both,
        Err(error) => return debug!(%error, "connection has not left HTTP"),
    };
    let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
    let copied =
        copy_bidirectional_with_sizes(&mut downstream, &mut upstream, TUNNEL_BUFFER, TUNNEL_BUFFER);
    match copied.await {
        Ok((sent, received)) => debug!(sent, received, "tunnel ended"),
        Err(error) => debug!(%error, "tunnel broke"),
    }
}
