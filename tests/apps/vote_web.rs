//! The vote application's front: HTML and JSON over HTTP, answered with calls to two gRPC services.

mod http_server;
mod listen;
mod vote_proto;

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Parser as _;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tracing::debug;

use crate::vote_proto::{
    Emoji, FindByShortcodeRequest, ListAllRequest, ResultsRequest, VoteRequest,
    emojis_client::EmojisClient, voting_client::VotingClient,
};

/// The vote application's front (HTTP): `/`, `/api/list`, `/api/vote?choice=:name:`,
/// `/api/leaderboard`.
#[derive(clap::Parser)]
#[command(
    name = "vote-web",
    after_help = "Example: vote-web --listen 127.0.0.1:8080 --emoji emoji:8080 --voting voting:8080"
)]
#[group(skip)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where vote-emoji listens.
    #[arg(long, value_name = "HOST:PORT")]
    emoji: String,
    /// Where vote-voting listens.
    #[arg(long, value_name = "HOST:PORT")]
    voting: String,
    #[command(flatten)]
    log: weft_runtime::logging::Args,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    weft_runtime::logging::init(&args.log)?;
    let services = Services {
        emojis: EmojisClient::new(channel(&args.emoji).context("--emoji")?),
        voting: VotingClient::new(channel(&args.voting).context("--voting")?),
    };
    http_server::serve(args.listen, move |request, ends| {
        debug!(client = %ends.peer, local = %ends.local, method = %request.method(), uri = %request.uri(), "request");
        services.clone().answer(request)
    })
    .await
}

/// A channel that connects when it is first used, and again whenever the connection was lost.
fn channel(target: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{target}"))?
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(5))
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

#[derive(Clone)]
struct Services {
    emojis: EmojisClient<Channel>,
    voting: VotingClient<Channel>,
}

impl Services {
    async fn answer(mut self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = match request.uri().path() {
            "/" => return self.page().await,
            "/api/list" => self.list().await,
            "/api/vote" => self.vote(request.uri()).await,
            "/api/leaderboard" => self.leaderboard().await,
            _ => Err(Status::not_found("try /, /api/list or /api/leaderboard")),
        };
        match answer {
            Ok(value) => respond(StatusCode::OK, JSON, value.to_string()),
            Err(status) => {
                let error =
                    json!({"code": format!("{:?}", status.code()), "error": status.message()});
                respond(status_of(status.code()), JSON, error.to_string())
            }
        }
    }

    async fn emojis(&mut self) -> Result<Vec<Emoji>, Status> {
        let reply = self.emojis.list_all(ListAllRequest {}).await?;
        Ok(reply.into_inner().emojis)
    }

    async fn list(&mut self) -> Result<Value, Status> {
        let emojis = self.emojis().await?;
        let rows = emojis
            .into_iter()
            .map(|emoji| json!({"shortcode": emoji.shortcode, "unicode": emoji.unicode}));
        Ok(rows.collect())
    }

    async fn vote(&mut self, uri: &Uri) -> Result<Value, Status> {
        let shortcode = choice(uri)
            .ok_or_else(|| Status::invalid_argument("say which, as in ?choice=:rocket:"))?;
        let find = FindByShortcodeRequest { shortcode };
        let emoji = self.emojis.find_by_shortcode(find).await?.into_inner();
        let shortcode = emoji.shortcode.clone();
        let vote = self.voting.vote(VoteRequest { shortcode }).await?;
        Ok(json!({"shortcode": emoji.shortcode, "votes": vote.into_inner().votes}))
    }

    async fn leaderboard(&mut self) -> Result<Value, Status> {
        let reply = self.voting.results(ResultsRequest {}).await?.into_inner();
        let rows = reply
            .results
            .into_iter()
            .map(|row| json!({"shortcode": row.shortcode, "votes": row.votes}));
        Ok(rows.collect())
    }

    async fn page(&mut self) -> Response<Full<Bytes>> {
        let emojis = match self.emojis().await {
            Ok(emojis) => emojis,
            Err(status) => {
                let text = format!(
                    "the list of emojis is not to be had: {}\n",
                    status.message()
                );
                return respond(status_of(status.code()), TEXT, text);
            }
        };
        let mut buttons = String::new();
        for Emoji { shortcode, unicode } in emojis {
            // Writing to a string does not fail. Shortcodes and emojis hold nothing to escape.
            writeln!(
                buttons,
                "<a href=\"/api/vote?choice={shortcode}\" title=\"{shortcode}\">{unicode}</a>"
            )
            .ok();
        }
        respond(StatusCode::OK, HTML, PAGE.replace("BUTTONS", &buttons))
    }
}

/// The wanted shortcode, `:` being allowed as such and as `%3A`.
fn choice(uri: &Uri) -> Option<String> {
    let mut pairs = uri.query()?.split('&');
    let value = pairs.find_map(|pair| pair.strip_prefix("choice="))?;
    Some(value.replace("%3A", ":").replace("%3a", ":"))
}

fn status_of(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::PermissionDenied | Code::Unauthenticated => StatusCode::FORBIDDEN,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded | Code::Cancelled => StatusCode::GATEWAY_TIMEOUT,
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn respond(status: StatusCode, media: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let media = HeaderValue::from_static(media);
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const PAGE: &str = include_str!("vote_web.html");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_may_be_percent_encoded() {
        for (uri, expected) in [
            ("/api/vote?choice=:cat:", Some(":cat:")),
            ("/api/vote?x=1&choice=%3Acat%3a", Some(":cat:")),
            ("/api/vote?chosen=:cat:", None),
            ("/api/vote", None),
        ] {
            assert_eq!(choice(&uri.parse().unwrap()).as_deref(), expected, "{uri}");
        }
    }
}
