//! Answers every request with JSON about it: method, path, headers, and the addresses of the
//! connection's two ends. Shows tests what reached the application.

mod http_server;
mod listen;

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use clap::Parser as _;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::json;

use crate::http_server::Ends;

/// Answers every HTTP request with JSON about it.
///
/// `/status/CODE` answers with that status.
#[derive(clap::Parser)]
#[command(
    name = "http-echo",
    after_help = "Example: http-echo --listen 127.0.0.1:8080"
)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    http_server::serve(args.listen, answer).await
}

async fn answer(request: Request<Incoming>, ends: Ends) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        let values = headers.entry(name.as_str()).or_default();
        values.push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let seen = json!({
        "method": head.method.as_str(),
        "version": format!("{:?}", head.version),
        "uri": head.uri.to_string(),
        "path": head.uri.path(),
        "authority": head.uri.authority().map(http::uri::Authority::as_str),
        "headers": headers,
        "body_bytes": body.as_ref().map(Bytes::len).ok(),
        "body_error": body.as_ref().err().map(ToString::to_string),
        "peer": ends.peer.to_string(),
        "local": ends.local.to_string(),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{seen}\n"))));
    *response.status_mut() = wanted_status(head.uri.path());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn wanted_status(path: &str) -> StatusCode {
    path.strip_prefix("/status/")
        .and_then(|code| code.parse().ok())
        .unwrap_or(StatusCode::OK)
}
