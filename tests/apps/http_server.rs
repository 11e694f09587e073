//! Runs an HTTP handler on a listener until SIGTERM: HTTP/1.1, and HTTP/2 with prior knowledge.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tracing::debug;
use weft_runtime::signal;

use crate::listen::{GRACE, listen};

/// The two ends of a connection, as the server sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// The client's end.
    pub(crate) peer: SocketAddr,
    /// The server's end.
    pub(crate) local: SocketAddr,
}

/// Serves `handler` on `addr`; requests that are open at SIGTERM get [`GRACE`] to end.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) async fn serve<H, F>(addr: SocketAddr, handler: H) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>, Ends) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = listen(addr).await?;
    let handler = Arc::new(handler);
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let mut terminated = pin!(signal::terminate());
    loop {
        let accepted = tokio::select! {
            () = &mut terminated => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, peer)) = accepted else {
            // Out of file descriptors, most likely: let the open connections go on.
            tokio::task::yield_now().await;
            continue;
        };
        let Some(ends) = ends(&socket, peer) else {
            continue;
        };
        let handler = Arc::clone(&handler);
        let service = service_fn(move |request| {
            let answer = handler(request, ends);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(socket), service);
        let connection = graceful.watch(connection.into_owned());
        connections.spawn(async move {
            if let Err(error) = connection.await {
                debug!(error, "connection failed");
            }
        });
    }
    // Whether all ended in time makes no difference: the process ends.
    tokio::time::timeout(GRACE, graceful.shutdown()).await.ok();
    Ok(())
}

fn ends(socket: &TcpStream, peer: SocketAddr) -> Option<Ends> {
    // Only latency is lost if it fails.
    socket.set_nodelay(true).ok();
    let local = socket.local_addr().ok()?;
    Some(Ends { peer, local })
}
