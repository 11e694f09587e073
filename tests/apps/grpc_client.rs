//! Calls every method of the echo service, checks the answers, and prints what it saw.

mod echo_proto;

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use serde::Serialize;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::echo_proto::{Ping, echo_client::EchoClient};

/// Calls every method of grpc-echo, checks the answers, and prints one JSON line.
#[derive(clap::Parser)]
#[command(
    name = "grpc-client",
    after_help = "Example: grpc-client --target echo:8080 --count 100"
)]
struct Args {
    /// Where grpc-echo listens.
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// How often to call each method, and how many messages each stream has.
    #[arg(long, default_value_t = 10)]
    count: u32,
    /// Sent as `l5d-client-id` with each call, as a client would that wants to pass as another.
    #[arg(long, value_name = "IDENTITY")]
    forge_client_id: Option<String>,
}

/// What came back.
#[derive(Default, Serialize)]
struct Report {
    unary: u32,
    server_stream: u32,
    bidirectional: u32,
    /// Calls that failed as they should.
    fail: u32,
    /// Metadata of the last unary call, as the server saw it.
    metadata: HashMap<String, String>,
    /// Our address, as the server saw it.
    peer: String,
    error: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut report = Report::default();
    if let Err(error) = run(&args, &mut report).await {
        report.error = Some(format!("{error:#}"));
    }
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{}", serde_json::to_string(&report)?);
    }
    let success = report.error.is_none();
    Ok(if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn run(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://{}", args.target))?
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE);
    let channel = endpoint.connect().await.context("connect")?;
    let mut calls = Calls {
        client: EchoClient::new(channel),
        args,
    };
    for number in 0..args.count {
        calls.unary(number, report).await.context("unary")?;
        calls.fail(report).await.context("fail")?;
    }
    calls.server_stream(report).await.context("server stream")?;
    calls
        .bidirectional(report)
        .await
        .context("bidirectional stream")
}

struct Calls<'run> {
    client: EchoClient<Channel>,
    args: &'run Args,
}

impl Calls<'_> {
    fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(identity) = &self.args.forge_client_id {
            let value = identity.parse().context("--forge-client-id")?;
            request.metadata_mut().insert("l5d-client-id", value);
        }
        Ok(request)
    }

    async fn unary(&mut self, number: u32, report: &mut Report) -> anyhow::Result<()> {
        let request = self.request(ping(number, 1))?;
        let pong = self.client.unary(request).await?.into_inner();
        ensure!(
            pong.payload == payload(number),
            "the payload came back changed"
        );
        report.unary += 1;
        report.metadata = pong.metadata;
        report.peer = pong.peer;
        Ok(())
    }

    async fn fail(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let request = self.request(ping(0, 1))?;
        let status = self
            .client
            .fail(request)
            .await
            .err()
            .context("it did not fail")?;
        ensure!(
            status.code() == Code::Internal,
            "failed with {status}, not with INTERNAL"
        );
        report.fail += 1;
        Ok(())
    }

    async fn server_stream(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let request = self.request(ping(7, self.args.count))?;
        let mut pongs = self.client.server_stream(request).await?.into_inner();
        while let Some(pong) = pongs.next().await {
            let pong = pong?;
            ensure!(
                pong.index == report.server_stream,
                "answers are out of order"
            );
            ensure!(pong.payload == payload(7), "the payload came back changed");
            report.server_stream += 1;
        }
        ensure!(
            report.server_stream == self.args.count,
            "answers are missing"
        );
        Ok(())
    }

    /// Sends each message only when the one before was answered, which a proxy that collects
    /// bodies would not survive.
    async fn bidirectional(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let (pings, receiver) = tokio::sync::mpsc::channel(1);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let request = self.request(outgoing)?;
        let mut pongs = self.client.bidirectional(request).await?.into_inner();
        for number in 0..self.args.count {
            pings.send(ping(number, 1)).await.context("send")?;
            let pong = pongs.next().await.context("the stream ended")??;
            ensure!(
                pong.payload == payload(number),
                "the payload came back changed"
            );
            report.bidirectional += 1;
        }
        drop(pings);
        ensure!(pongs.next().await.is_none(), "an answer to nothing");
        Ok(())
    }
}

fn ping(number: u32, count: u32) -> Ping {
    Ping {
        payload: payload(number),
        count,
        with_metadata: true,
    }
}

/// Sizes from 0 to 64 KiB, so that some need several frames.
fn payload(number: u32) -> Vec<u8> {
    let sizes = [0, 5, 1024, 65_536];
    let size = sizes[number as usize % sizes.len()];
    number
        .to_be_bytes()
        .into_iter()
        .cycle()
        .take(size)
        .collect()
}

const PATIENCE: Duration = Duration::from_secs(5);
