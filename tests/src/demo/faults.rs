//! The script of `weft-demo --once`, second part: what is on the wire, what a crash costs, and what
//! stays behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apps,
    capture::Capture,
    demo::{
        cast::{Demo, GRPC, MIRROR, VOTE, WEBSOCKET},
        checks::Check,
    },
    hammer::{Hammer, Report},
    leftovers::Leftovers,
    pcap::all_tls13,
};

/// Names and checks, in order.
pub const CHECKS: &[(&str, Check)] = &[
    ("the wire between the nodes", wire),
    ("agent killed under load", agent_crash),
];

/// Ports that meshed pods of the demo are reached at.
const PORTS: &[u16] = &[
    apps::NGINX,
    apps::REDIS,
    apps::POSTGRES,
    GRPC,
    WEBSOCKET,
    MIRROR,
    VOTE,
    4143,
];

/// Sends texts that nobody else sends, in all directions, and looks for them in the packets.
fn wire(demo: &Demo) -> Result<String> {
    let canaries = ["request", "reply", "redis-value", "sql", "row"]
        .map(|what| format!("canary-{what}-{}", std::process::id()));
    let capture = Capture::between_nodes(&demo.world, "canaries")?;
    let client = demo.pod("client")?;
    let [request, reply, value, sql, row] = &canaries;
    let web = demo.pod("web-2")?.at(apps::NGINX);
    let header = format!("x-canary: {request}");
    let url = format!("http://{web}/echo?{reply}");
    let (status, body) = apps::curl(client, &url, &["--header", &header])?;
    ensure!(status == 200 && body.trim() == reply, "{status} {body}");
    let cache = demo.service("cache")?;
    apps::redis_cli(client, cache, &["set", "canary", value])?;
    ensure!(apps::redis_cli(client, cache, &["get", "canary"])? == *value);
    let statement = format!("select reverse('{}') /* {sql} */", reversed(row));
    let answer = apps::sql(client, demo.service("db")?, &statement)?;
    ensure!(answer.trim() == row, "psql: {answer}");
    let frames = capture.stop()?;
    ensure!(!frames.is_empty(), "no packet between the nodes");
    for canary in &canaries {
        ensure!(!frames.contains(canary.as_bytes()), "{canary} is readable");
    }
    let handshakes = all_tls13(&frames, PORTS)?;
    ensure!(handshakes > 0, "no handshake in {} packets", frames.len());
    Ok(format!(
        "{} packets, {handshakes} handshakes of TLS 1.3, no text readable",
        frames.len()
    ))
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

/// Askers of the load; each may lose the one request that is under way when an agent dies.
const ASKERS: u64 = 4;

/// Kills the agent of each node in turn while new connections keep coming.
fn agent_crash(demo: &Demo) -> Result<String> {
    let askers = ASKERS.to_string();
    let args = ["--connections", askers.as_str()];
    let load = Hammer::start(
        demo.pod("client")?,
        "crash-load",
        demo.service("web")?,
        &args,
    )?;
    load.more(50)?;
    let mut kills = 0;
    for node in demo.world.nodes() {
        node.kill_agent();
        kills += 1;
        node.start_agent()?;
        load.more(100)?;
    }
    let report = load.stop()?;
    judge_crash(&report, kills)?;
    Ok(format!(
        "{kills} crashes, {} connections, none refused, {} cut, longest {} ms",
        report.attempts, report.failed, report.longest_ms
    ))
}

/// No connection may be refused; what was under way when an agent died may be cut.
///
/// # Errors
/// When more was lost.
pub fn judge_crash(report: &Report, kills: u64) -> Result<()> {
    ensure!(report.refused == 0, "{report:?}");
    ensure!(report.failed <= kills * ASKERS, "{report:?}");
    Ok(())
}

/// Takes the demo down in good order and looks for what stays behind.
///
/// # Errors
/// Names what is left.
pub fn nothing_left(demo: Demo) -> Result<String> {
    let prefix = demo.world.prefix().to_owned();
    demo.world.stop().context("stop")?;
    let mut pins = Vec::new();
    for node in demo.world.nodes() {
        node.cleanup().context("weft-node cleanup")?;
        // The kernel itself shows these two in every BPF file system.
        let own = ["progs.debug", "maps.debug"].map(|name| node.bpffs().join(name));
        pins.extend(
            files(&node.bpffs())
                .into_iter()
                .filter(|path| !own.contains(path)),
        );
    }
    ensure!(pins.is_empty(), "pins left: {pins:?}");
    drop(demo);
    let left = Leftovers::of(&prefix).find()?;
    ensure!(left.is_empty(), "{left}");
    let rules = crate::process::Launch::new("ip")
        .args(["rule", "show"])
        .run()?;
    ensure!(
        !rules.contains("1033"),
        "a rule in the machine's own namespace: {rules}"
    );
    Ok("no namespace, pin, cgroup, rule, mount or process".to_owned())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            // The kernel puts `maps.debug` and `progs.debug` into every BPF file system.
            false if path.extension().is_some_and(|it| it == "debug") => {}
            false => found.push(path),
        }
    }
    found
}
