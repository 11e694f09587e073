//! What evades capture does not leave the node in clear: the egress guard.

use anyhow::Result;
use weft_tests::{
    World, apps,
    capture::Capture,
    eventually,
    fixture::{MIRROR, Pair},
    netns::Netns,
    node::binary,
    process::{Launch, Process},
    test_name, world,
};

/// Connections that were dropped, by the node daemon's count.
fn drops(world: &World, node: &str) -> Result<f64> {
    let scrape = world.node(node)?.daemon_metrics()?;
    let samples = scrape.samples.iter();
    Ok(samples
        .filter(|sample| sample.name == "weft_kernel_decisions_total")
        .filter(|sample| sample.label("reason").starts_with("guard_drop"))
        .map(|sample| sample.value)
        .sum())
}

/// A process of the client that holds a connection to the mirror.
fn hold(pair: &Pair, name: &str, args: &[&str]) -> Result<Process> {
    let target = pair.server.at(MIRROR).to_string();
    let program = binary(&world::programs()?, "socket-styles")?;
    let launch = pair
        .client
        .launch(program)
        .args(["hold", &target])
        .args(args);
    pair.client.spawn(name, launch.keep_stdin())
}

#[test]
fn with_its_rule_deleted_a_pod_sends_nothing_in_clear() {
    let mut pair = Pair::build(test_name!()).unwrap();
    pair.start_mirror().unwrap();
    pair.works_soon().unwrap();
    let node = pair.world.node("n1").unwrap();
    let mut established = hold(&pair, "held", &[]).unwrap();
    established.wait_for("connected").unwrap();
    // Nobody repairs: what counts is what the kernel does alone.
    node.kill_daemon();
    for family in ["-4", "-6"] {
        let rule = [family, "rule", "del", "pref", "100"];
        let nsenter = Launch::new("ip").netns(pair.client.netns()).args(rule);
        nsenter.run().unwrap();
    }
    let capture = Capture::between_nodes(&pair.world, "no-rule").unwrap();
    established
        .close_stdin_with("canary-of-an-established-flow")
        .unwrap();
    for ip in pair.server.ips() {
        let url = format!(
            "http://{}/canary-of-a-new-flow",
            std::net::SocketAddr::new(*ip, 8080)
        );
        let answer = apps::curl(&pair.client, &url, &["--globoff", "--connect-timeout", "3"]);
        assert!(answer.is_err(), "{answer:?}");
    }
    let frames = capture.stop().unwrap();
    for canary in ["canary-of-an-established-flow", "canary-of-a-new-flow"] {
        assert!(
            !frames.contains(canary.as_bytes()),
            "{canary} left in clear"
        );
    }
    let attempts = frames.connection_attempts();
    let leaked = attempts
        .iter()
        .filter(|(from, to)| pair.client.ips().contains(&from.ip()) && to.port() == 8080);
    assert_eq!(leaked.count(), 0, "{attempts:?}");
    node.start_daemon().unwrap();
    pair.works_soon().unwrap();
}

#[test]
fn the_daemon_puts_a_deleted_rule_back() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    for family in ["-4", "-6"] {
        let rule = [family, "rule", "del", "pref", "100"];
        Launch::new("ip")
            .netns(pair.client.netns())
            .args(rule)
            .run()
            .unwrap();
    }
    eventually("both rules are back", || {
        for family in ["-4", "-6"] {
            let show = [family, "rule", "show", "pref", "100"];
            let rules = Launch::new("ip")
                .netns(pair.client.netns())
                .args(show)
                .run()?;
            anyhow::ensure!(rules.contains("1033"), "{family}: {rules}");
        }
        Ok(())
    })
    .unwrap();
    pair.works_soon().unwrap();
}

#[test]
fn a_nested_namespace_of_a_meshed_pod_cannot_connect_out() {
    let pair = Pair::build(test_name!()).unwrap();
    let inner = Netns::create(&format!("{}-inner", pair.world.prefix())).unwrap();
    Launch::new("ip")
        .args(["link", "add", "eth0", "netns", inner.name(), "type", "veth"])
        .args([
            "peer",
            "name",
            "inner0",
            "netns",
            pair.client.netns().name(),
        ])
        .run()
        .unwrap();
    inner.ip("addr add 10.78.0.2/24 dev eth0").unwrap();
    inner.ip("link set eth0 up").unwrap();
    inner.ip("route add default via 10.78.0.1").unwrap();
    let pod = pair.client.netns();
    pod.ip("addr add 10.78.0.1/24 dev inner0").unwrap();
    pod.ip("link set inner0 up").unwrap();
    pod.sysctl("ipv4/ip_forward", "1").unwrap();
    // The way back, as the pod's own address translation would give it.
    let [first, second] = pair.world.nodes() else {
        unreachable!("two nodes");
    };
    let via_pod = format!("route add 10.78.0.0/24 via {}", pair.client.ip());
    first.netns().ip(&via_pod).unwrap();
    let via_node = format!("route add 10.78.0.0/24 via {}", first.ips()[0]);
    second.netns().ip(&via_node).unwrap();
    let target = format!("/dev/tcp/{}/{}", pair.server.ip(), apps::NGINX);
    let connect = |launch: Launch| {
        let words = [
            "-c".to_owned(),
            format!("timeout 3 bash -c 'exec 3<>{target}'"),
        ];
        launch.args(words).run()
    };
    let before = drops(&pair.world, "n1").unwrap();
    let outside = Launch::new("bash").netns(&inner);
    connect(outside).expect("a process of nobody's cgroup is not held up");
    let inside = Launch::new("bash")
        .netns(&inner)
        .cgroup(pair.client.cgroup());
    connect(inside).expect_err("a process of the pod's cgroup is");
    eventually("the drop is counted", || {
        let after = drops(&pair.world, "n1")?;
        anyhow::ensure!(after > before, "{after} drops, {before} before");
        Ok(())
    })
    .unwrap();
}

#[test]
fn marks_of_its_own_do_not_take_a_pod_out_of_the_mesh() {
    let mut pair = Pair::build(test_name!()).unwrap();
    pair.start_mirror().unwrap();
    let capture = Capture::between_nodes(&pair.world, "marks").unwrap();
    for (name, mark) in [
        ("steering", "1048576"),
        ("other", "2097152"),
        ("all", "4294967295"),
        ("low", "1"),
    ] {
        let mut process = hold(&pair, name, &["--mark", mark]).unwrap();
        process.wait_for("\n").unwrap();
        process.close_stdin_with(&format!("canary-{name}")).unwrap();
    }
    let frames = capture.stop().unwrap();
    assert!(
        !frames.contains(b"canary-"),
        "a marked socket sent in clear"
    );
    let clear = frames.plaintext_streams();
    let clear: Vec<_> = clear
        .iter()
        .filter(|stream| stream.to.port() == MIRROR)
        .collect();
    assert!(clear.is_empty(), "{clear:?}");
}

#[test]
fn with_the_agent_dead_connections_wait_and_nothing_leaves_in_clear() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let node = pair.world.node("n1").unwrap();
    let capture = Capture::between_nodes(&pair.world, "no-agent").unwrap();
    node.kill_agent();
    for service in &pair.service {
        let url = format!("http://{service}/canary-without-agent");
        let answer = apps::curl(&pair.client, &url, &["--globoff", "--max-time", "2"]);
        assert!(answer.is_err(), "{answer:?}");
    }
    let frames = capture.stop().unwrap();
    assert!(!frames.contains(b"canary-without-agent"));
    node.start_agent().unwrap();
    pair.works_soon().unwrap();
}
