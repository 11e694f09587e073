//! Keeps the vote application busy: lists, votes and looks at the leaderboard, at a steady rate.
//!
//! One vote in eight goes to the choice that always fails, one request in thirty-two to a path
//! that does not exist. Failures are counted, never a reason to stop.

use std::{pin::pin, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Parser as _;
use http::{Request, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rand::{Rng as _, seq::IndexedRandom as _};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};
use weft_runtime::signal;

/// Keeps the vote application busy until SIGTERM.
#[derive(clap::Parser)]
#[command(
    name = "vote-bot",
    after_help = "Example: vote-bot --web http://web:8080 --rps 5"
)]
#[group(skip)]
struct Args {
    /// Where vote-web listens.
    #[arg(long, value_name = "URL")]
    web: Uri,
    /// Requests per second.
    #[arg(long, default_value_t = 2.0)]
    rps: f64,
    #[command(flatten)]
    log: weft_runtime::logging::Args,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    weft_runtime::logging::init(&args.log)?;
    if !(args.rps > 0.0 && args.rps <= 100_000.0) {
        bail!("--rps {}: must be above 0 and at most 100000", args.rps);
    }
    let mut ticks = interval(Duration::from_secs_f64(1.0 / args.rps));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut bot = Bot::new(&args.web)?;
    let mut terminated = pin!(signal::terminate());
    say("ready", &args.web.to_string());
    loop {
        tokio::select! {
            () = &mut terminated => break,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = &mut terminated => break,
            () = bot.act() => {}
        }
    }
    let Counts { ok, failed, lost } = bot.counts;
    say(
        "done",
        &json!({"ok": ok, "failed": failed, "lost": lost}).to_string(),
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "lines that the starter reads")]
fn say(word: &str, rest: &str) {
    println!("{word} {rest}");
}

#[derive(Default)]
struct Counts {
    ok: u64,
    /// Answered with a status of 400 and above.
    failed: u64,
    /// Not answered.
    lost: u64,
}

struct Bot {
    host: String,
    target: (String, u16),
    choices: Vec<String>,
    connection: Option<Connection>,
    counts: Counts,
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Bot {
    fn new(web: &Uri) -> anyhow::Result<Self> {
        let authority = web
            .authority()
            .context("--web must be like http://HOST:PORT")?;
        let name = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self {
            host: authority.as_str().to_owned(),
            target: (name, authority.port_u16().unwrap_or(80)),
            choices: Vec::new(),
            connection: None,
            counts: Counts::default(),
        })
    }

    /// Does one thing that a user might do.
    async fn act(&mut self) {
        let path = self.whim();
        match timeout(PATIENCE, self.get(&path)).await {
            Ok(Ok((status, body))) => {
                let success = status < 400;
                *(if success {
                    &mut self.counts.ok
                } else {
                    &mut self.counts.failed
                }) += 1;
                debug!(path, status, "answered");
                if success && path == LIST {
                    self.choices = shortcodes(&body);
                }
            }
            Ok(Err(error)) => self.lose(&path, &format!("{error:#}")),
            Err(_elapsed) => self.lose(&path, "no answer in time"),
        }
    }

    fn lose(&mut self, path: &str, error: &str) {
        info!(path, error, "request failed");
        self.connection = None;
        self.counts.lost += 1;
    }

    /// What to ask for next.
    fn whim(&self) -> String {
        let mut rng = rand::rng();
        let draw: u32 = rng.random_range(0..32);
        match (draw, self.choices.choose(&mut rng)) {
            (0, _) => "/api/nonsense".to_owned(),
            (1..4, Some(_)) => format!("/api/vote?choice={BROKEN}"),
            (4..28, Some(choice)) => format!("/api/vote?choice={choice}"),
            (28..30, _) => "/api/leaderboard".to_owned(),
            (30, _) => "/".to_owned(),
            _ => LIST.to_owned(),
        }
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<(u16, Bytes)> {
        let request = Request::get(path).header(HOST, &self.host);
        let request = request.body(Empty::new()).context("build the request")?;
        let reusable = self
            .connection
            .take()
            .filter(|open| !open.sender.is_closed());
        let mut connection = match reusable {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection
            .sender
            .ready()
            .await
            .context("wait for the connection")?;
        let response = connection
            .sender
            .send_request(request)
            .await
            .context("send")?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .context("read")?
            .to_bytes();
        self.connection = Some(connection);
        Ok((status, body))
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let (host, port) = &self.target;
        let socket = TcpStream::connect((host.as_str(), *port))
            .await
            .context("connect")?;
        let (sender, driver) = http1::handshake(TokioIo::new(socket)).await?;
        let driver = async move {
            if let Err(error) = driver.await {
                debug!(%error, "connection ended");
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "the handle ends it with the connection"
        )]
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        Ok(Connection {
            sender,
            _driver: driver,
        })
    }
}

fn shortcodes(list: &[u8]) -> Vec<String> {
    let Ok(Value::Array(rows)) = serde_json::from_slice(list) else {
        return Vec::new();
    };
    let shortcode = |row: &Value| row.get("shortcode")?.as_str().map(str::to_owned);
    rows.iter()
        .filter_map(shortcode)
        .filter(|found| found != BROKEN)
        .collect()
}

const LIST: &str = "/api/list";
const BROKEN: &str = ":doughnut:";
const PATIENCE: Duration = Duration::from_secs(5);
