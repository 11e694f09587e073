//! The connection to the controller, and what is put on and counted of every call.

use std::{
    error::Error as _,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};
use weft_runtime::logging::report;

use crate::{
    identity::TokenFile,
    metrics::{AgentMetrics, Classification, HttpMetrics, Outcome},
    tls::crypto,
};

/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings tell a connection that is dead from one on which nothing happens for hours.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Whom to trust as the controller; replaced when the trust bundle changes. Cheap to clone.
#[derive(Clone)]
pub struct ControllerTls {
    config: Arc<ArcSwap<rustls::ClientConfig>>,
    name: ServerName<'static>,
}

/// Why a connection to the controller cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The name expected in the controller's certificate is no DNS name.
    #[error("controller name {0:?} is not a DNS name")]
    Name(String),
    /// The address is not `host:port`.
    #[error("controller address {0:?} is not host:port")]
    Address(String),
    /// The anchors hold no certificate that can be used.
    #[error("trust anchors of the controller hold no usable certificate")]
    Anchors,
    /// The TLS provider lacks a version.
    #[error("TLS settings for the controller")]
    Tls(#[source] rustls::Error),
}

impl ControllerTls {
    /// Trusts `anchors` (PEM) and expects `name` in the controller's certificate.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(anchors: &str, name: &str) -> Result<Self, ControllerError> {
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_error| ControllerError::Name(name.to_owned()))?;
        Ok(Self {
            config: Arc::new(ArcSwap::new(client_config(anchors)?)),
            name: server,
        })
    }

    /// Trusts `anchors` for connections opened from here on.
    ///
    /// # Errors
    /// When they cannot be used; the former ones stay.
    pub fn set_anchors(&self, anchors: &str) -> Result<(), ControllerError> {
        self.config.store(client_config(anchors)?);
        Ok(())
    }
}

fn client_config(anchors: &str) -> Result<Arc<rustls::ClientConfig>, ControllerError> {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(anchors.as_bytes());
    roots.add_parsable_certificates(certificates.flatten());
    if roots.is_empty() {
        return Err(ControllerError::Anchors);
    }
    let mut config = rustls::ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(crypto::VERSIONS)
        .map_err(ControllerError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Makes the one channel to the controller. It connects when first used and again when broken.
///
/// # Errors
/// When the address is not `host:port`.
pub fn channel(address: &str, tls: ControllerTls) -> Result<Channel, ControllerError> {
    // The scheme is what tonic would do by itself: nothing, because the connector does TLS.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .ok()
        .filter(|_| {
            address
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        })
        .ok_or_else(|| ControllerError::Address(address.to_owned()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let connector = Connector {
        address: address.into(),
        tls,
    };
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Opens TLS connections with the anchors of the moment, which tonic's own connector cannot.
#[derive(Clone)]
struct Connector {
    address: Arc<str>,
    tls: ControllerTls,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let Self { address, tls } = self.clone();
        Box::pin(async move {
            let socket = TcpStream::connect(&*address).await?;
            socket.set_nodelay(true)?;
            let connector = TlsConnector::from(tls.config.load_full());
            Ok(TokioIo::new(connector.connect(tls.name, socket).await?))
        })
    }
}

/// What every call to the controller needs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) channel: Channel,
    pub(super) token: TokenFile,
    pub(super) calls: Arc<HttpMetrics>,
    pub(super) metrics: AgentMetrics,
    /// Whether the controller answered last time; many streams break at once, one says so.
    pub(super) is_answering: Arc<AtomicBool>,
}

impl Client {
    /// Makes a request that carries the node's credential.
    pub(super) async fn request<M>(&self, message: M) -> Result<Request<M>, Status> {
        let bearer = self.token.bearer().await;
        let bearer = bearer.map_err(|error| Status::unauthenticated(report(&error).to_string()))?;
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// Counts a call that begins now.
    pub(super) fn begin(&self) -> Call {
        self.calls.request();
        Call {
            calls: Arc::clone(&self.calls),
            started: Instant::now(),
            latency: None,
            code: Some(Code::Cancelled),
        }
    }

    /// Notes that the controller answers.
    pub(super) fn answers(&self) {
        if !self.is_answering.swap(true, Ordering::Relaxed) {
            info!("controller answers");
        }
    }

    /// Notes that it does not.
    pub(super) fn fails(&self, status: &Status) {
        if self.is_answering.swap(false, Ordering::Relaxed) {
            warn!(code = ?status.code(), error = status.message(), "controller does not answer; what is known stays in use");
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// A call that goes on; counted as ended when dropped.
pub(super) struct Call {
    calls: Arc<HttpMetrics>,
    started: Instant,
    latency: Option<Duration>,
    /// `None` if there was no answer at all.
    code: Option<Code>,
}

impl Call {
    /// The controller has begun to answer.
    pub(super) fn answered(&mut self) {
        self.latency.get_or_insert_with(|| self.started.elapsed());
    }

    /// How the call ends. A call for which nobody says so was given up by us.
    pub(super) fn ended(&mut self, status: &Status) {
        // What comes from the connection has a cause; what the controller has said has none.
        let is_of_controller = self.latency.is_some() || status.source().is_none();
        self.code = is_of_controller.then(|| status.code());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let failed = matches!(
            self.code,
            None | Some(
                Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::PermissionDenied
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss
            )
        );
        self.calls.response(&Outcome {
            status: self.code.map(|_| 200),
            class: match failed {
                true => Classification::Failure,
                false => Classification::Success,
            },
            grpc_status: self
                .code
                .and_then(|code| u16::try_from(i32::from(code)).ok()),
            error: self.code.is_none().then_some("unclassified"),
            latency: self.latency.unwrap_or_else(|| self.started.elapsed()),
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::{net::TcpListener, task::JoinSet};
    use tokio_rustls::TlsAcceptor;
    use tower_service::Service as _;

    use super::*;
    use crate::tls::testing::{Ca, soon};

    pub(in crate::discovery) const NAME: &str =
        "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local";

    /// Has a certificate for `name`.
    pub(in crate::discovery) fn acceptor(ca: &Ca, name: &str) -> TlsAcceptor {
        let end = std::time::SystemTime::now() + crate::tls::testing::HOUR;
        let key = Arc::unwrap_or_clone(ca.certified(&[name], end));
        let mut config = rustls::ServerConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(crypto::VERSIONS)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server with a certificate for `name`.
    async fn serve(ca: &Ca, name: &str, tasks: &mut JoinSet<()>) -> Arc<str> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let acceptor = acceptor(ca, name);
        tasks.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                acceptor.accept(socket).await.map(drop).ok();
            }
        });
        addr.into()
    }

    #[tokio::test]
    async fn the_controller_is_trusted_by_name_and_by_the_anchors_of_the_moment() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut tasks = JoinSet::new();
        let address = serve(&new, NAME, &mut tasks).await;
        let impostor = serve(&new, "impostor.example", &mut tasks).await;
        let tls = ControllerTls::new(&old.pem(), NAME).unwrap();
        let connect = |address: &Arc<str>| {
            let address = Arc::clone(address);
            let tls = tls.clone();
            soon(Connector { address, tls }.call(Uri::from_static("https://x")))
        };
        assert!(connect(&address).await.is_err(), "not vouched for");
        assert!(tls.set_anchors("no certificate").is_err());
        tls.set_anchors(&new.pem()).unwrap();
        assert!(connect(&address).await.is_ok());
        assert!(connect(&impostor).await.is_err(), "the wrong name");
    }

    #[tokio::test]
    async fn addresses_without_a_port_are_refused() {
        let tls = ControllerTls::new(&Ca::new("ca").pem(), NAME).unwrap();
        for (address, is_good) in [
            ("10.0.0.1:8086", true),
            ("[fd00::1]:8086", true),
            ("controller.example:8086", true),
            ("10.0.0.1", false),
            ("controller.example:http", false),
            ("a b:80", false),
        ] {
            assert_eq!(channel(address, tls.clone()).is_ok(), is_good, "{address}");
        }
    }
}
