//! The vote application's list of emojis, over gRPC.

mod grpc_server;
mod listen;
mod vote_proto;

use std::net::SocketAddr;

use clap::Parser as _;
use tonic::{Request, Response, Status, transport::Server};

use crate::vote_proto::{
    Emoji, FindByShortcodeRequest, ListAllReply, ListAllRequest,
    emojis_server::{Emojis, EmojisServer},
};

/// The vote application's list of emojis (gRPC).
#[derive(clap::Parser)]
#[command(
    name = "vote-emoji",
    after_help = "Example: vote-emoji --listen 127.0.0.1:8081"
)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let router = Server::builder().add_service(EmojisServer::new(Fixed));
    grpc_server::serve(args.listen, router).await
}

struct Fixed;

#[tonic::async_trait]
impl Emojis for Fixed {
    async fn list_all(
        &self,
        _request: Request<ListAllRequest>,
    ) -> Result<Response<ListAllReply>, Status> {
        let emojis = EMOJIS.iter().map(emoji).collect();
        Ok(Response::new(ListAllReply { emojis }))
    }

    async fn find_by_shortcode(
        &self,
        request: Request<FindByShortcodeRequest>,
    ) -> Result<Response<Emoji>, Status> {
        let wanted = request.into_inner().shortcode;
        let found = EMOJIS.iter().find(|(shortcode, _)| *shortcode == wanted);
        found
            .map(|found| Response::new(emoji(found)))
            .ok_or_else(|| Status::not_found(format!("no emoji is called {wanted}")))
    }
}

fn emoji((shortcode, unicode): &(&str, &str)) -> Emoji {
    Emoji {
        shortcode: (*shortcode).to_owned(),
        unicode: (*unicode).to_owned(),
    }
}

const EMOJIS: &[(&str, &str)] = &[
    (":100:", "💯"),
    (":bacon:", "🥓"),
    (":balloon:", "🎈"),
    (":beach_umbrella:", "🏖"),
    (":bulb:", "💡"),
    (":cat:", "🐈"),
    (":clap:", "👏"),
    (":doughnut:", "🍩"),
    (":fire:", "🔥"),
    (":ghost:", "👻"),
    (":guitar:", "🎸"),
    (":heart_eyes_cat:", "😻"),
    (":hedgehog:", "🦔"),
    (":joy:", "😂"),
    (":mailbox_with_mail:", "📬"),
    (":nerd_face:", "🤓"),
    (":octopus:", "🐙"),
    (":pizza:", "🍕"),
    (":rainbow:", "🌈"),
    (":rocket:", "🚀"),
    (":spider:", "🕷"),
    (":sunglasses:", "😎"),
    (":thread:", "🧵"),
    (":tropical_drink:", "🍹"),
];
