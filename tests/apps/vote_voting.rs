//! The vote application's counter of votes, over gRPC.
//!
//! One choice always fails, so that whoever watches the application has failures to see.

mod grpc_server;
mod listen;
mod vote_proto;

use std::{cmp::Reverse, collections::BTreeMap, net::SocketAddr};

use clap::Parser as _;
use parking_lot::Mutex;
use tonic::{Request, Response, Status, transport::Server};

use crate::vote_proto::{
    Result as Standing, ResultsReply, ResultsRequest, VoteReply, VoteRequest,
    voting_server::{Voting, VotingServer},
};

/// The choice that cannot be voted for.
const BROKEN: &str = ":doughnut:";

/// The vote application's counter (gRPC). Votes for `:doughnut:` fail on purpose.
#[derive(clap::Parser)]
#[command(
    name = "vote-voting",
    after_help = "Example: vote-voting --listen 127.0.0.1:8082"
)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let router = Server::builder().add_service(VotingServer::new(Votes::default()));
    grpc_server::serve(args.listen, router).await
}

#[derive(Default)]
struct Votes(Mutex<BTreeMap<String, u64>>);

#[tonic::async_trait]
impl Voting for Votes {
    async fn vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteReply>, Status> {
        let shortcode = request.into_inner().shortcode;
        if shortcode == BROKEN {
            return Err(Status::internal("this choice always fails"));
        }
        let mut counts = self.0.lock();
        let votes = counts.entry(shortcode).or_default();
        *votes += 1;
        Ok(Response::new(VoteReply { votes: *votes }))
    }

    async fn results(
        &self,
        _request: Request<ResultsRequest>,
    ) -> Result<Response<ResultsReply>, Status> {
        let mut results: Vec<Standing> = self
            .0
            .lock()
            .iter()
            .map(|(shortcode, votes)| Standing {
                shortcode: shortcode.clone(),
                votes: *votes,
            })
            .collect();
        results.sort_by_key(|standing| Reverse(standing.votes));
        Ok(Response::new(ResultsReply { results }))
    }
}
