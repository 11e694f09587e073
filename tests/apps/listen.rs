//! What every server of this folder does at its start and end.
//!
//! It prints `ready <address>` on stdout when connections are accepted, for whoever started it to
//! wait for, and ends on SIGTERM: what is open gets a moment to finish.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::net::TcpListener;

/// How long open connections may go on after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// Binds `addr` and says so. Port 0 takes a free one, which the line names.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("listen on {addr} (see --listen)"))?;
    let bound = listener.local_addr().context("read the bound address")?;
    #[expect(clippy::print_stdout, reason = "the line that the starter waits for")]
    {
        println!("ready {bound}");
    }
    Ok(listener)
}
