//! Listeners: accept, TLS handshake, HTTP/2.
//!
//! Handshakes run beside each other with a bound and a deadline, so that a client that sends
//! nothing holds nobody else up.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};
use tracing::{debug, info, warn};

/// How a listener protects what it says.
#[derive(Clone)]
pub enum Tls {
    /// With the controller's own certificate.
    Server(Arc<rustls::ServerConfig>),
    /// Not at all: for loopback.
    Plaintext,
}

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams of one connection.
    pub streams: u32,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long streams may go on when the process stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // One connection of an agent carries the streams of all pods of its node.
            streams: 16_384,
            handshakes: 256,
            handshake: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves until stopped.
///
/// # Errors
/// When the listener cannot be used any more.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    routes: Routes,
    limits: Limits,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let addr = listener
        .local_addr()
        .context("read the listener's address")?;
    let is_tls = matches!(tls, Tls::Server(_));
    info!(%addr, tls = is_tls, "serving");
    let router = Server::builder()
        .max_concurrent_streams(limits.streams)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .tcp_nodelay(true)
        .add_routes(routes);
    let signal = stop.clone().cancelled_owned();
    let served = async {
        match tls {
            Tls::Plaintext => {
                let incoming = TcpListenerStream::new(listener).filter_map(|accepted| async {
                    // Out of descriptors, or a client that has gone: neither ends the service.
                    accepted
                        .inspect_err(|error| warn!(%error, "accept failed"))
                        .ok()
                });
                let incoming = incoming.map(|socket: TcpStream| {
                    socket.set_nodelay(true).ok();
                    Ok::<_, io::Error>(socket)
                });
                router.serve_with_incoming_shutdown(incoming, signal).await
            }
            Tls::Server(config) => {
                let incoming = handshakes(listener, config, limits, stop.clone());
                let incoming = incoming.map(Ok::<TlsStream<TcpStream>, io::Error>);
                router.serve_with_incoming_shutdown(incoming, signal).await
            }
        }
    };
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(limits.drain).await;
    };
    tokio::select! {
        served = served => served.with_context(|| format!("serve on {addr}")),
        () = overdue => Ok(()),
    }
}

fn handshakes(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    limits: Limits,
    stop: CancellationToken,
) -> ReceiverStream<TlsStream<TcpStream>> {
    let (sender, accepted) = mpsc::channel(64);
    let tasks = TaskTracker::new();
    let spawner = tasks.clone();
    tasks.spawn(stop.run_until_cancelled_owned(async move {
        let acceptor = TlsAcceptor::from(config);
        let permits = Arc::new(Semaphore::new(limits.handshakes));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let (socket, client) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            socket.set_nodelay(true).ok();
            let handshake = acceptor.accept(socket);
            let sender = sender.clone();
            spawner.spawn(async move {
                let _permit = permit;
                match timeout(limits.handshake, handshake).await {
                    Ok(Ok(stream)) => {
                        // Only a listener that has ended does not take it.
                        sender.send(stream).await.ok();
                    }
                    Ok(Err(error)) => log_failed(client, &error.to_string()),
                    Err(_elapsed) => log_failed(client, "time-out"),
                }
            });
        }
    }));
    ReceiverStream::new(accepted)
}

/// Out of descriptors, accepting fails at once and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn log_failed(client: SocketAddr, error: &str) {
    debug!(%client, error, "TLS handshake failed");
}
