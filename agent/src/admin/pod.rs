//! A pod's admin port (4191): its own metrics and health, as its sidecar would show them.
//!
//! Takes plaintext and mesh TLS, HTTP/1. What only the pod itself may do is answered to loopback
//! clients alone; everyone else gets 403. `/shutdown` drains this
//! pod's connections, not the agent.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};
use weft_runtime::{admin::text, logging::report};

use crate::{
    context::PodContext,
    metrics::NodeMetrics,
    sockets::listeners::{self, Accepted},
    tls,
    transport::{
        detect::{self, TlsHello},
        io::Rewind,
    },
};

/// How long a client may take to begin, to shake hands, and to send a request's headers.
const LIMIT: Duration = Duration::from_secs(10);
/// Connections to the admin port of one pod.
const MAX_CONNECTIONS: usize = 64;

/// What a pod's admin port shows.
#[derive(Clone)]
pub struct PodAdmin {
    pod: Arc<PodContext>,
    metrics: Arc<NodeMetrics>,
}

/// Serves a pod's admin listener until stopped.
pub async fn serve_pod(
    admin: PodAdmin,
    listener: tokio::net::TcpListener,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let serve = |accepted: Accepted| {
        if connections.len() >= MAX_CONNECTIONS {
            debug!(client = %accepted.client, "too many connections to the admin port");
            return;
        }
        let (admin, stop) = (admin.clone(), stop.clone());
        let connection = async move { admin.serve(accepted).await };
        connections.spawn(stop.run_until_cancelled_owned(connection));
    };
    listeners::accept(listener, stop.clone(), serve).await;
}

impl PodAdmin {
    /// Shows a pod that is registered in `metrics`.
    pub fn new(pod: Arc<PodContext>, metrics: Arc<NodeMetrics>) -> Self {
        Self { pod, metrics }
    }

    async fn serve(&self, accepted: Accepted) {
        let client = accepted.client.ip();
        if let Err(error) = self.accept(accepted.stream, client).await {
            debug!(%client, error = %report(&*error), "admin connection failed");
        }
    }

    async fn accept(
        &self,
        stream: TcpStream,
        client: IpAddr,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut stream = Rewind::new(stream);
        let hello = detect::tls(&mut stream, LIMIT).await?;
        let own_name = self.pod.workload.identity.as_str();
        let is_mesh = matches!(&hello, TlsHello::Sni(name) if name.eq_ignore_ascii_case(own_name));
        match self.pod.identity.current() {
            Some(credentials) if is_mesh => {
                let (stream, _peer) =
                    timeout(LIMIT, tls::server::accept(stream, &credentials)).await??;
                self.answer_all(stream, client).await
            }
            _ if matches!(hello, TlsHello::NotTls) => self.answer_all(stream, client).await,
            _ => Err("TLS for somebody else, or before there is a certificate".into()),
        }
    }

    async fn answer_all(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin,
        client: IpAddr,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let service = service_fn(|request: Request<Incoming>| {
            let response = self.answer(&request, client);
            async { Ok::<_, Infallible>(response) }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(LIMIT)
            .serve_connection(TokioIo::new(io), service)
            .await?;
        Ok(())
    }

    pub(super) fn answer<B>(&self, request: &Request<B>, client: IpAddr) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_allowed = match path {
            "/shutdown" => request.method() == Method::POST,
            _ => is_read,
        };
        let is_own = matches!(path, "/shutdown" | "/env.json" | "/proxy-log-level");
        if is_own && !client.is_loopback() {
            return text(StatusCode::FORBIDDEN, "");
        }
        if !is_allowed {
            return text(StatusCode::METHOD_NOT_ALLOWED, "");
        }
        match path {
            "/metrics" => self.metrics_page(),
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" if self.is_ready() => text(StatusCode::OK, "ready\n"),
            "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/shutdown" => {
                let workload = &self.pod.workload;
                info!(namespace = %workload.namespace, pod = %workload.name, "pod asked to drain");
                self.pod.drain.cancel();
                text(StatusCode::OK, "shutdown\n")
            }
            "/env.json" => super::node::json(&self.environment(request.uri().query())),
            _ => text(StatusCode::NOT_FOUND, ""),
        }
    }

    /// Whether the pod's connections are served: there is a certificate and it does not drain.
    fn is_ready(&self) -> bool {
        self.pod.identity.current().is_some() && !self.pod.drain.is_cancelled()
    }

    fn metrics_page(&self) -> Response<Full<Bytes>> {
        match self.metrics.render_pod(&self.pod.workload.uid) {
            None => text(StatusCode::NOT_FOUND, ""),
            Some(page) => {
                let mut response = text(StatusCode::OK, page);
                // What Prometheus takes Linkerd's mixture of dialects for.
                let plain = HeaderValue::from_static("text/plain; version=0.0.4");
                response.headers_mut().insert(CONTENT_TYPE, plain);
                response
            }
        }
    }

    /// The settings of this pod under the names that its sidecar would have had them. The agent's
    /// own environment is nobody's business.
    fn environment(&self, query: Option<&str>) -> Value {
        let workload = &self.pod.workload;
        let settings = workload.settings.load();
        let ips: Vec<_> = workload.ips.iter().map(ToString::to_string).collect();
        let ports = |ports: &[u16]| {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            ports.join(",")
        };
        let opaque: Vec<_> = settings
            .opaque
            .ranges()
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            })
            .collect();
        let all = [
            ("ADMIN_LISTEN_ADDR", format!("[::]:{}", settings.admin_port)),
            (
                "INBOUND_LISTEN_ADDR",
                format!("[::]:{}", settings.inbound_port),
            ),
            ("INBOUND_IPS", ips.join(",")),
            ("INBOUND_PORTS", ports(&settings.container_ports)),
            ("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", opaque.join(",")),
            (
                "INBOUND_DEFAULT_POLICY",
                settings.default_inbound_policy.to_string(),
            ),
            (
                "INBOUND_CONNECT_TIMEOUT",
                format!("{}ms", settings.inbound_connect_timeout.as_millis()),
            ),
            (
                "OUTBOUND_CONNECT_TIMEOUT",
                format!("{}ms", settings.outbound_connect_timeout.as_millis()),
            ),
            ("IDENTITY_LOCAL_NAME", workload.identity.to_string()),
        ];
        let wanted: Option<Vec<&str>> = query.map(|query| query.split('&').collect());
        let named = all
            .into_iter()
            .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), Value::String(value)))
            .filter(|(name, _)| {
                let is_wanted = |wanted: &Vec<&str>| wanted.contains(&name.as_str());
                wanted.as_ref().is_none_or(is_wanted)
            });
        Value::Object(Map::from_iter(named))
    }
}
