//! Waiting for the signals that end a daemon.

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Completes on SIGTERM or SIGINT.
pub async fn terminate() {
    let (Ok(mut term), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be watched; only SIGKILL ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => info!(signal = "SIGTERM", "stopping"),
        _ = interrupt.recv() => info!(signal = "SIGINT", "stopping"),
    }
}
