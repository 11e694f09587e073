//! Sends every WebSocket message back.

mod listen;

use std::{net::SocketAddr, pin::pin};

use clap::Parser as _;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{accept_async, tungstenite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_runtime::signal;

/// Sends every WebSocket message back.
#[derive(clap::Parser)]
#[command(
    name = "ws-echo",
    after_help = "Example: ws-echo --listen 127.0.0.1:8080"
)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let listener = listen::listen(args.listen).await?;
    let (connections, stop) = (TaskTracker::new(), CancellationToken::new());
    let mut terminated = pin!(signal::terminate());
    loop {
        let accepted = tokio::select! {
            () = &mut terminated => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _peer)) = accepted else {
            tokio::task::yield_now().await;
            continue;
        };
        // An error ends this one connection; its client sees it.
        connections.spawn(echo(socket, stop.clone()));
    }
    stop.cancel();
    connections.close();
    timeout(listen::GRACE, connections.wait()).await.ok();
    Ok(())
}

async fn echo(socket: TcpStream, stop: CancellationToken) -> Result<(), tungstenite::Error> {
    let mut socket = accept_async(socket).await?;
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return socket.close(None).await,
            message = socket.next() => message,
        };
        match message.transpose()? {
            Some(message) if message.is_text() || message.is_binary() => {
                socket.send(message).await?;
            }
            // tungstenite itself answers pings and the closing handshake.
            Some(_control) => socket.flush().await?,
            None => return Ok(()),
        }
    }
}
