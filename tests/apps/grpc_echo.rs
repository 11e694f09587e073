//! A gRPC server that says what it got, in every kind of call: see `proto/echo.proto`.

mod echo_proto;
mod grpc_server;
mod listen;

use std::{collections::HashMap, net::SocketAddr, pin::Pin};

use clap::Parser as _;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{KeyAndValueRef, MetadataMap},
    transport::Server,
};

use crate::echo_proto::{
    Ping, Pong,
    echo_server::{Echo, EchoServer},
};

/// A gRPC server that says what it got.
#[derive(clap::Parser)]
#[command(
    name = "grpc-echo",
    after_help = "Example: grpc-echo --listen 127.0.0.1:8080"
)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let router = Server::builder().add_service(EchoServer::new(Mirror));
    grpc_server::serve(args.listen, router).await
}

type Pongs = Pin<Box<dyn Stream<Item = Result<Pong, Status>> + Send>>;

struct Mirror;

#[tonic::async_trait]
impl Echo for Mirror {
    async fn unary(&self, request: Request<Ping>) -> Result<Response<Pong>, Status> {
        let about = About::of(&request);
        Ok(Response::new(about.answer(0, request.into_inner())))
    }

    type ServerStreamStream = Pongs;

    async fn server_stream(&self, request: Request<Ping>) -> Result<Response<Pongs>, Status> {
        let about = About::of(&request);
        let ping = request.into_inner();
        let answers = (0..ping.count).map(move |index| Ok(about.answer(index, ping.clone())));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    type BidirectionalStream = Pongs;

    async fn bidirectional(
        &self,
        request: Request<Streaming<Ping>>,
    ) -> Result<Response<Pongs>, Status> {
        let about = About::of(&request);
        let mut index = 0;
        let answers = request.into_inner().map(move |ping| {
            let pong = about.answer(index, ping?);
            index += 1;
            Ok(pong)
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fail(&self, _request: Request<Ping>) -> Result<Response<Pong>, Status> {
        Err(Status::internal("this method always fails"))
    }
}

/// What is known of a call beside its messages.
struct About {
    metadata: MetadataMap,
    peer: String,
}

impl About {
    fn of<T>(request: &Request<T>) -> Self {
        Self {
            metadata: request.metadata().clone(),
            peer: request
                .remote_addr()
                .map(|addr| addr.to_string())
                .unwrap_or_default(),
        }
    }

    fn answer(&self, index: u32, ping: Ping) -> Pong {
        let metadata = if ping.with_metadata {
            texts(&self.metadata)
        } else {
            HashMap::new()
        };
        Pong {
            payload: ping.payload,
            index,
            metadata,
            peer: self.peer.clone(),
        }
    }
}

fn texts(metadata: &MetadataMap) -> HashMap<String, String> {
    let text = |entry: KeyAndValueRef<'_>| match entry {
        KeyAndValueRef::Ascii(key, value) => {
            Some((key.to_string(), value.to_str().ok()?.to_owned()))
        }
        KeyAndValueRef::Binary(..) => None,
    };
    metadata.iter().filter_map(text).collect()
}
