//! The generator and the acceptor that measure connection set-up.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::Stdio;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::{Duration, timeout},
};

const PATIENCE: Duration = Duration::from_secs(10);
const PROGRAM: &str = env!("CARGO_BIN_EXE_bench-connections");

#[tokio::test]
async fn every_connection_that_the_acceptor_resets_is_counted() {
    let mut acceptor = Command::new(PROGRAM)
        .args(["accept", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(acceptor.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, stdout.next_line()).await.unwrap();
    let line = line.unwrap().unwrap();
    let addr = line.strip_prefix("ready ").unwrap();
    let counted = count(addr).await;
    assert!(counted["connected"].as_u64().unwrap() > 10, "{counted}");
    assert_eq!(counted["failed"], 0, "{counted}");
}

#[tokio::test]
async fn connections_that_nobody_accepts_are_failures() {
    let counted = count("127.0.0.1:1").await;
    assert_eq!(counted["connected"], 0, "{counted}");
    assert!(counted["failed"].as_u64().unwrap() > 0, "{counted}");
}

async fn count(addr: &str) -> Value {
    let args = ["connect", addr, "--seconds", "0.2", "--threads", "2"];
    let output = Command::new(PROGRAM).args(args).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}
