//! Runs a tonic router on a listener until SIGTERM.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};
use weft_runtime::signal;

use crate::listen::{GRACE, listen};

/// Serves `router` on `addr`; streams that are open at SIGTERM get [`GRACE`] to end.
///
/// # Errors
/// When the address cannot be bound, or the server fails.
pub(crate) async fn serve(addr: SocketAddr, router: Router) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listen(addr).await?).with_nodelay(Some(true));
    let stop = CancellationToken::new();
    let served = router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    tokio::pin!(served);
    tokio::select! {
        ended = &mut served => return ended.context("serve gRPC"),
        () = signal::terminate() => stop.cancel(),
    }
    match tokio::time::timeout(GRACE, served).await {
        Ok(ended) => ended.context("serve gRPC"),
        Err(_still_open) => Ok(()),
    }
}
