//! The applications that demo, suites and benchmarks run, over loopback and without a mesh.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    io,
    net::SocketAddr,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running server. Killed when dropped.
struct Server {
    child: Child,
    addr: SocketAddr,
    /// Kept open: a program that writes to a closed stdout fails.
    _stdout: Stdout,
}

type Stdout = Lines<BufReader<ChildStdout>>;

impl Server {
    async fn start(program: &str, args: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", program, args).await
    }

    async fn start_on(listen: &str, program: &str, args: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(["--listen", listen])
            .args(args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = word(&mut stdout, "ready").await.parse().unwrap();
        Self {
            child,
            addr,
            _stdout: stdout,
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nhost: test\r\nx-sent: yes\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    async fn get_json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    async fn stop(mut self) {
        terminate(&self.child).unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "a clean exit on SIGTERM, not {status}");
    }
}

/// What follows `word` in the next line.
async fn word(stdout: &mut Stdout, word: &str) -> String {
    let line = timeout(PATIENCE, stdout.next_line()).await.unwrap();
    let line = line.unwrap().unwrap();
    let (first, rest) = line.split_once(' ').unwrap();
    assert_eq!(first, word, "{line}");
    rest.to_owned()
}

fn terminate(child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    Ok(rustix::process::kill_process(
        pid,
        rustix::process::Signal::TERM,
    )?)
}

async fn run(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    let output = command.args(args).kill_on_drop(true).output();
    timeout(PATIENCE, output).await.unwrap().unwrap()
}

struct Vote {
    web: Server,
    emoji: Server,
    voting: Server,
}

impl Vote {
    async fn start() -> Self {
        let emoji = Server::start(env!("CARGO_BIN_EXE_vote-emoji"), &[]).await;
        let voting = Server::start(env!("CARGO_BIN_EXE_vote-voting"), &[]).await;
        let (to_emoji, to_voting) = (emoji.addr.to_string(), voting.addr.to_string());
        let args = ["--emoji", &to_emoji, "--voting", &to_voting];
        let web = Server::start(env!("CARGO_BIN_EXE_vote-web"), &args).await;
        Self { web, emoji, voting }
    }
}

#[tokio::test]
async fn votes_are_counted_and_one_choice_always_fails() {
    let vote = Vote::start().await;
    let (status, page) = vote.web.get("/").await;
    assert_eq!(status, 200);
    assert!(page.contains("choice=:rocket:"), "{page}");
    assert_eq!(vote.web.get("/api/list").await.0, 200);
    for (choice, expected) in [
        (":rocket:", 200),
        (":rocket:", 200),
        (":cat:", 200),
        (":doughnut:", 500),
        (":nonsense:", 404),
    ] {
        let (status, body) = vote.web.get(&format!("/api/vote?choice={choice}")).await;
        assert_eq!(status, expected, "{choice}: {body}");
    }
    let (status, board) = vote.web.get_json("/api/leaderboard").await;
    let expected = serde_json::json!([
        {"shortcode": ":rocket:", "votes": 2},
        {"shortcode": ":cat:", "votes": 1},
    ]);
    assert_eq!((status, board), (200, expected));
    vote.web.stop().await;
    vote.emoji.stop().await;
    vote.voting.stop().await;
}

#[tokio::test]
async fn the_vote_front_finds_a_restarted_service_again() {
    let vote = Vote::start().await;
    assert_eq!(vote.web.get("/api/list").await.0, 200);
    let addr = vote.emoji.addr.to_string();
    vote.emoji.stop().await;
    assert_eq!(vote.web.get("/api/list").await.0, 503);
    let _emoji = Server::start_on(&addr, env!("CARGO_BIN_EXE_vote-emoji"), &[]).await;
    assert_eq!(vote.web.get("/api/list").await.0, 200);
}

#[tokio::test]
async fn the_vote_bot_keeps_going_and_says_at_the_end_what_came_back() {
    let vote = Vote::start().await;
    let mut bot = Command::new(env!("CARGO_BIN_EXE_vote-bot"))
        .args(["--web", &format!("http://{}", vote.web.addr)])
        .args(["--rps", "500"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(bot.stdout.take().unwrap()).lines();
    word(&mut stdout, "ready").await;
    let voted = async {
        while vote.web.get_json("/api/leaderboard").await.1 == serde_json::json!([]) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, voted).await.unwrap();
    terminate(&bot).unwrap();
    let counts: Value = serde_json::from_str(&word(&mut stdout, "done").await).unwrap();
    assert!(counts["ok"].as_u64().unwrap() > 0, "{counts}");
    assert_eq!(counts["lost"], 0, "{counts}");
    let status = timeout(PATIENCE, bot.wait()).await.unwrap().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn grpc_calls_of_every_kind_come_back() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let echo = Server::start_on(listen, env!("CARGO_BIN_EXE_grpc-echo"), &[]).await;
        let target = echo.addr.to_string();
        let args = [
            "--target",
            &target,
            "--count",
            "9",
            "--forge-client-id",
            "mallory",
        ];
        let output = run(env!("CARGO_BIN_EXE_grpc-client"), &args).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{report}");
        for kind in ["unary", "server_stream", "bidirectional", "fail"] {
            assert_eq!(report[kind], 9, "{kind} in {report}");
        }
        assert_eq!(report["metadata"]["l5d-client-id"], "mallory", "{report}");
        echo.stop().await;
    }
}

#[tokio::test]
async fn a_grpc_client_without_a_server_says_why_and_fails() {
    let args = ["--target", "127.0.0.1:1"];
    let output = run(env!("CARGO_BIN_EXE_grpc-client"), &args).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success());
    assert!(
        report["error"].as_str().unwrap().starts_with("connect"),
        "{report}"
    );
}

#[tokio::test]
async fn websocket_messages_come_back() {
    let echo = Server::start(env!("CARGO_BIN_EXE_ws-echo"), &[]).await;
    let url = format!("ws://{}/", echo.addr);
    let output = run(env!("CARGO_BIN_EXE_ws-client"), &[&url, "--count", "25"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["echoed"], 25, "{report}");
    echo.stop().await;
}

#[tokio::test]
async fn an_open_websocket_does_not_hold_up_the_end_of_the_server() {
    let echo = Server::start(env!("CARGO_BIN_EXE_ws-echo"), &[]).await;
    let url = format!("ws://{}/", echo.addr);
    let (_socket, _response) = tokio_tungstenite::connect_async(url).await.unwrap();
    timeout(Duration::from_secs(2), echo.stop()).await.unwrap();
}

#[tokio::test]
async fn the_http_echo_tells_what_reached_it() {
    let echo = Server::start(env!("CARGO_BIN_EXE_http-echo"), &[]).await;
    let (status, seen) = echo.get_json("/status/418?a=b").await;
    assert_eq!(status, 418);
    assert_eq!(seen["method"], "GET");
    assert_eq!(seen["version"], "HTTP/1.0");
    assert_eq!(seen["path"], "/status/418");
    assert_eq!(seen["headers"]["x-sent"], serde_json::json!(["yes"]));
    assert_eq!(seen["local"], echo.addr.to_string());
    assert!(
        seen["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{seen}"
    );
    echo.stop().await;
}
