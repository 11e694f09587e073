//! The script of `weft-demo --once`, first part: everyday traffic of real programs.
//!
//! A check gives the detail for its row, or an error that says what was seen.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    apps,
    demo::cast::{Demo, OUTSIDER},
    eventually::eventually,
};

/// One row of the script.
pub type Check = fn(&Demo) -> Result<String>;

/// Names and checks, in order.
pub const CHECKS: &[(&str, Check)] = &[
    ("nginx through its service", balanced),
    ("mutual TLS in the metrics", identities),
    ("same node", same_node),
    ("IPv6", ipv6),
    ("wrk", wrk),
    ("redis", redis),
    ("PostgreSQL", postgres),
    ("gRPC", grpc),
    ("WebSocket", websocket),
    ("vote application", vote),
    ("l5d-client-id", client_id),
    ("from outside the mesh", from_outside),
    ("to outside the mesh", to_outside),
    ("socket addresses", addresses),
    ("pod metrics", pod_metrics),
];

fn url(demo: &Demo, service: &str, path: &str) -> Result<String> {
    Ok(format!("http://{}{path}", demo.service(service)?))
}

/// Many ask at once: both replicas get their part. One alone would always be sent to whichever
/// answers faster.
fn balanced(demo: &Demo) -> Result<String> {
    let client = demo.pod("client")?;
    let (status, body) = apps::curl(client, &url(demo, "web", "/")?, &[])?;
    ensure!(status == 200 && body.starts_with("web-"), "{status} {body}");
    let answered = || {
        let scrape = demo.world.metrics()?;
        let of = |pod| scrape.sum("response_total", &[("pod", pod), ("direction", "inbound")]);
        Ok::<_, anyhow::Error>(["web-1", "web-2"].map(of))
    };
    let before = answered()?;
    apps::wrk(client, &url(demo, "web", "/")?, 8, 2)?;
    let after = answered()?;
    let parts = [after[0] - before[0], after[1] - before[1]];
    let all = parts[0] + parts[1];
    ensure!(all > 0.0, "no request was counted");
    let shares = parts.map(|part| part / all);
    ensure!(
        shares.iter().all(|share| *share >= 0.1),
        "shares of the replicas: {shares:?}"
    );
    Ok(format!(
        "{:.0} % and {:.0} % of {all}",
        shares[0] * 100.0,
        shares[1] * 100.0
    ))
}

fn identities(demo: &Demo) -> Result<String> {
    let (client, server) = (demo.pod("client")?, demo.pod("web-2")?);
    let (client_id, server_id) = (client.identity(), server.identity());
    eventually("both identities counted", || {
        let scrape = demo.world.metrics()?;
        let outbound = [
            ("pod", "client"),
            ("direction", "outbound"),
            ("tls", "true"),
            ("server_id", server_id.as_str()),
        ];
        let inbound = [
            ("pod", "web-2"),
            ("direction", "inbound"),
            ("tls", "true"),
            ("client_id", client_id.as_str()),
        ];
        let outbound = scrape.sum("response_total", &outbound);
        let inbound = scrape.sum("response_total", &inbound);
        ensure!(
            outbound > 0.0,
            "no response_total with server_id {server_id}"
        );
        ensure!(
            inbound > 0.0,
            "no response_total with client_id {client_id}"
        );
        Ok(format!(
            "{outbound} sent as client, {inbound} received by web-2"
        ))
    })
}

fn same_node(demo: &Demo) -> Result<String> {
    let (client, server) = (demo.pod("client")?, demo.pod("web-1")?);
    let url = format!("http://{}/client-id", server.at(apps::NGINX));
    let (status, body) = apps::curl(client, &url, &[])?;
    ensure!(status == 200, "status {status}: {body}");
    ensure!(body.trim() == client.identity(), "client id {body:?}");
    Ok(format!("{} to {}", client.ip(), server.ip()))
}

fn ipv6(demo: &Demo) -> Result<String> {
    let address = demo
        .addresses("web")?
        .into_iter()
        .find(|address| address.is_ipv6());
    let address = address.context("service without IPv6 address")?;
    let url = format!("http://{address}/client-id");
    let (status, body) = apps::curl(demo.pod("client")?, &url, &["--globoff"])?;
    ensure!(status == 200, "status {status}: {body}");
    ensure!(
        body.trim() == demo.pod("client")?.identity(),
        "client id {body:?}"
    );
    Ok(address.to_string())
}

fn wrk(demo: &Demo) -> Result<String> {
    let wrk = apps::wrk(demo.pod("client")?, &url(demo, "web", "/")?, 8, 3)?;
    ensure!(wrk.errors.is_empty(), "{:?}", wrk.errors);
    ensure!(wrk.requests > 0, "no request");
    Ok(format!("{} requests, no error", wrk.requests))
}

fn redis(demo: &Demo) -> Result<String> {
    let (client, cache) = (demo.pod("client")?, demo.service("cache")?);
    let set = apps::redis_cli(client, cache, &["set", "colour", "teal"])?;
    ensure!(set == "OK", "set: {set}");
    let got = apps::redis_cli(client, cache, &["get", "colour"])?;
    ensure!(got == "teal", "get: {got}");
    let secured = eventually("connection to redis counted", || {
        tcp_over_tls(demo, "cache")
    })?;
    Ok(format!("set and get, {secured} connections over TLS"))
}

/// Connections that a pod took over mutual TLS.
fn tcp_over_tls(demo: &Demo, pod: &str) -> Result<f64> {
    let labels = [
        ("pod", pod),
        ("direction", "inbound"),
        ("peer", "src"),
        ("tls", "true"),
    ];
    let count = demo.world.metrics()?.sum("tcp_open_total", &labels);
    ensure!(count > 0.0, "no tcp_open_total of {pod} with tls=\"true\"");
    Ok(count)
}

fn postgres(demo: &Demo) -> Result<String> {
    let (client, db) = (demo.pod("client")?, demo.service("db")?);
    let sum = "begin; create temp table t(n int); insert into t values (40), (2); \
        select sum(n) from t; commit";
    let answer = apps::sql(client, db, sum)?;
    ensure!(answer.lines().any(|line| line == "42"), "psql: {answer}");
    let server = format!("-h {} -p {} -U postgres", db.ip(), db.port());
    client.run(&format!("pgbench -i -q -s 1 {server} postgres"))?;
    let bench = client.run(&format!("pgbench -n -c 2 -t 50 {server} postgres"))?;
    let done = bench
        .lines()
        .find(|line| line.contains("transactions actually processed"));
    let done = done.with_context(|| format!("pgbench: {bench}"))?;
    ensure!(done.contains("100/100"), "pgbench: {done}");
    let secured = tcp_over_tls(demo, "db")?;
    Ok(format!("100 transactions, {secured} connections over TLS"))
}

fn grpc(demo: &Demo) -> Result<String> {
    let target = demo.service("grpc")?.to_string();
    let args = ["--target", &target, "--count", "20"];
    let output = apps::run_own(demo.pod("client")?, "grpc-client", &args)?;
    let seen = format!("{}{}", output.stdout.trim(), output.stderr.trim());
    ensure!(output.status.success(), "{seen}");
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| seen.clone())?;
    ensure!(report["unary"] == 20, "{seen}");
    Ok("unary, server streaming, bidirectional".to_owned())
}

fn websocket(demo: &Demo) -> Result<String> {
    let url = format!("ws://{}/", demo.service("ws")?);
    let output = apps::run_own(demo.pod("client")?, "ws-client", &[&url, "--count", "20"])?;
    let seen = format!("{}{}", output.stdout.trim(), output.stderr.trim());
    ensure!(output.status.success(), "{seen}");
    Ok(seen)
}

/// The bot keeps voting; some votes fail, and are to be seen as failures.
fn vote(demo: &Demo) -> Result<String> {
    let client = demo.pod("client")?;
    let (status, body) = apps::curl(client, &url(demo, "vote-web", "/api/list")?, &[])?;
    ensure!(
        status == 200 && body.contains("shortcode"),
        "list: {status} {body}"
    );
    let (status, body) = apps::curl(client, &url(demo, "vote-web", "/api/leaderboard")?, &[])?;
    ensure!(status == 200, "leaderboard: {status} {body}");
    let (good, bad) = eventually("votes counted, good and failing", || {
        let scrape = demo.world.metrics()?;
        let of = |class| {
            let labels = [
                ("pod", "vote-voting"),
                ("direction", "inbound"),
                ("tls", "true"),
                ("classification", class),
            ];
            scrape.sum("response_total", &labels)
        };
        let (good, bad) = (of("success"), of("failure"));
        ensure!(good > 0.0 && bad > 0.0, "{good} successes, {bad} failures");
        Ok((good, bad))
    })?;
    Ok(format!("{good} votes, {bad} failing as expected"))
}

fn client_id(demo: &Demo) -> Result<String> {
    let client = demo.pod("client")?;
    let url = url(demo, "web", "/client-id")?;
    let forged = ["--header", "l5d-client-id: somebody.else"];
    for args in [&[][..], &forged] {
        let (status, body) = apps::curl(client, &url, args)?;
        ensure!(status == 200, "status {status}: {body}");
        ensure!(body.trim() == client.identity(), "nginx was told {body:?}");
    }
    Ok(client.identity())
}

fn from_outside(demo: &Demo) -> Result<String> {
    let (outsider, server) = (demo.pod(OUTSIDER)?, demo.pod("web-1")?);
    let url = format!("http://{}/client-id", server.at(apps::NGINX));
    let forged = ["--header", "l5d-client-id: somebody.else"];
    let (status, body) = apps::curl(outsider, &url, &forged)?;
    ensure!(status == 200, "status {status}: {body}");
    ensure!(body.trim().is_empty(), "nginx was told {body:?}");
    eventually("counted as without identity", || {
        let labels = [
            ("pod", "web-1"),
            ("direction", "inbound"),
            ("tls", "no_identity"),
        ];
        let count = demo.world.metrics()?.sum("response_total", &labels);
        ensure!(count > 0.0, "no response_total with tls=\"no_identity\"");
        Ok(format!("{count} without identity"))
    })
}

fn to_outside(demo: &Demo) -> Result<String> {
    let outsider = demo.pod(OUTSIDER)?;
    let url = format!("http://{}/", outsider.at(apps::NGINX));
    let (status, body) = apps::curl(demo.pod("client")?, &url, &[])?;
    ensure!(status == 200 && body.trim() == OUTSIDER, "{status} {body}");
    Ok(outsider.at(apps::NGINX).to_string())
}

/// What the client's socket and the server's socket say about the connection.
fn addresses(demo: &Demo) -> Result<String> {
    let (client, mirror) = (demo.pod("client")?, demo.pod("mirror")?);
    let target = demo.service("mirror")?;
    let args = ["connect", &target.to_string(), "--style", "blocking"];
    let output = apps::run_own(client, "socket-styles", &args)?;
    let row: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    ensure!(row["ok"] == true, "{row}");
    let seen = &row["seen"];
    let text = |key: &str| seen[key].as_str().unwrap_or_default().to_owned();
    ensure!(text("peer") == target.to_string(), "getpeername: {seen}");
    let own = format!("{}:", client.ip());
    ensure!(text("local").starts_with(&own), "getsockname: {seen}");
    let server = mirror.at(target.port()).to_string();
    ensure!(
        text("server_local") == server,
        "server's getsockname: {seen}"
    );
    Ok(format!("{} to {}", text("local"), text("peer")))
}

fn pod_metrics(demo: &Demo) -> Result<String> {
    let names = [
        "request_total",
        "response_total",
        "response_latency_ms_bucket",
        "tcp_open_total",
        "tcp_open_connections",
        "tcp_read_bytes_total",
        "tcp_write_bytes_total",
        "tcp_close_total",
        "inbound_http_authz_allow_total",
        "control_identity_cert_expiration_timestamp_seconds",
        "process_cpu_seconds_total",
        "proxy_build_info",
    ];
    let pod = demo.pod("web-1")?;
    let reply = demo.world.pod_admin(pod, "/metrics")?;
    ensure!(reply.status == 200, "status {}", reply.status);
    let scrape = crate::metrics::Scrape::parse(&reply.body)?;
    let missing: Vec<_> = names.iter().filter(|name| !scrape.has(name)).collect();
    ensure!(missing.is_empty(), "missing: {missing:?}");
    let own: Vec<String> = pod.ips().iter().map(ToString::to_string).collect();
    let foreign = scrape
        .samples
        .iter()
        .filter(|sample| sample.label("direction") == "inbound")
        .map(|sample| sample.label("target_ip"))
        .find(|target| !target.is_empty() && !own.iter().any(|ip| ip == target));
    ensure!(foreign.is_none(), "series of another pod: {foreign:?}");
    Ok(format!("{} series on web-1:4191", scrape.samples.len()))
}
