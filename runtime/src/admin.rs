//! A daemon's admin server: `/metrics`, `/ready`, `/live`.
//!
//! Small and separate from whatever the daemon serves to others; plaintext, meant for loopback or
//! the node's network. Does not know what the metrics are: the caller passes a function.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::ready::Readiness;

/// Media type of the OpenMetrics text format.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers a path of its own, or says that it is not its own with `None`.
pub type Extra = dyn Fn(&Request<Incoming>) -> Option<Response<Full<Bytes>>> + Send + Sync;

/// What an admin server shows.
#[derive(Clone)]
pub struct Admin {
    /// Readiness behind `/ready`.
    pub readiness: Readiness,
    /// Text behind `/metrics`, made anew for every scrape.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Further paths of the daemon.
    pub extra: Option<Arc<Extra>>,
}

/// Renders a registry as OpenMetrics text.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => text,
        Err(error) => format!("# metrics cannot be written: {error}\n"),
    }
}

impl Admin {
    /// Binds `addr` and serves until stopped.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn serve(self, addr: SocketAddr, stop: CancellationToken) -> anyhow::Result<()> {
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("bind the admin address {addr} (see --admin-addr)"))?;
        self.serve_on(listener, stop).await
    }

    /// Serves a bound listener until stopped.
    ///
    /// # Errors
    /// None that end it: connections that fail are logged.
    pub async fn serve_on(
        self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let Ok((socket, _client)) = accepted else {
                tokio::task::yield_now().await;
                continue;
            };
            let admin = self.clone();
            connections.spawn(stop.clone().run_until_cancelled_owned(async move {
                let service = service_fn(|request| {
                    let response = admin.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                if let Err(error) = connection.await {
                    debug!(%error, "admin connection failed");
                }
            }));
        }
    }

    /// Answers one request.
    pub fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(response) = self.extra.as_ref().and_then(|extra| extra(request)) {
            return response;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" if self.readiness.is_ready() => text(StatusCode::OK, "ready\n"),
            "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => {
                let mut response = text(StatusCode::OK, (self.metrics)());
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, http::HeaderValue::from_static(OPENMETRICS));
                response
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "not found: try /metrics, /ready or /live\n",
            ),
        }
    }
}

/// Makes a plain text response.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
