//! Sends WebSocket messages and checks that each comes back.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

/// Sends WebSocket messages, checks that each comes back, and prints one JSON line.
#[derive(clap::Parser)]
#[command(
    name = "ws-client",
    after_help = "Example: ws-client ws://echo:8080/ --count 100"
)]
struct Args {
    /// Where to connect to.
    url: String,
    /// How many messages to send.
    #[arg(long, default_value_t = 10)]
    count: u32,
    /// Pause between two messages, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut echoed = 0;
    let outcome = run(&args, &mut echoed).await;
    let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!(
            "{}",
            json!({"sent": args.count, "echoed": echoed, "error": error})
        );
    }
    if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn run(args: &Args, echoed: &mut u32) -> anyhow::Result<()> {
    let (mut socket, _response) = timeout(PATIENCE, connect_async(&args.url))
        .await
        .context("no WebSocket handshake in time")?
        .context("WebSocket handshake")?;
    for number in 0..args.count {
        let message = if number % 2 == 0 {
            Message::text(format!("message {number}"))
        } else {
            Message::binary(number.to_be_bytes().repeat(256))
        };
        socket.send(message.clone()).await.context("send")?;
        let answer = timeout(PATIENCE, socket.next())
            .await
            .context("no echo in time")?;
        let answer = answer.context("connection ended")?.context("receive")?;
        ensure!(answer == message, "message {number} came back changed");
        *echoed += 1;
        sleep(Duration::from_millis(args.pause_ms)).await;
    }
    socket.close(None).await.context("close")?;
    // The server's half of the closing handshake.
    while let Some(message) = timeout(PATIENCE, socket.next())
        .await
        .context("no close in time")?
    {
        message.context("close")?;
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(5);
