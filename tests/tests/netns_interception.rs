//! Every way in which programs connect is captured, and no socket notices.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use serde_json::Value;
use weft_tests::{
    PodSpec, apps, eventually,
    fixture::{MIRROR, Pair, mirror, socket_styles},
    test_name,
};

fn address(row: &Value, key: &str) -> SocketAddr {
    let text = row["seen"][key].as_str().unwrap_or("0.0.0.0:0");
    text.parse::<SocketAddr>()
        .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
        .unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)))
}

/// Checks one row: the client sees what it asked for, the server sees its own address.
fn check(row: &Value, target: SocketAddr, client: IpAddr, server: &[IpAddr]) {
    assert_eq!(row["ok"], true, "{target}: {row}");
    if row["skipped"] == true {
        return;
    }
    assert_eq!(address(row, "peer"), target, "getpeername: {row}");
    assert_eq!(address(row, "local").ip(), client, "getsockname: {row}");
    let server_local = address(row, "server_local");
    assert!(server.contains(&server_local.ip()), "at the server: {row}");
    assert_eq!(server_local.port(), MIRROR, "at the server: {row}");
    let seen_as = address(row, "server_peer").ip();
    assert!(server.contains(&seen_as), "client at the server: {row}");
}

#[test]
fn every_socket_style_is_captured_and_keeps_its_addresses() {
    let mut pair = Pair::build(test_name!()).unwrap();
    let services = pair.start_mirror().unwrap();
    let pods = pair
        .server
        .ips()
        .iter()
        .map(|ip| SocketAddr::new(*ip, MIRROR));
    for target in services.into_iter().chain(pods) {
        eventually(&format!("{target} is known"), || {
            let rows = socket_styles(&pair.client, target, &["blocking"])?;
            anyhow::ensure!(rows[0]["ok"] == true, "{rows:?}");
            Ok(())
        })
        .unwrap();
        let own = pair
            .client
            .ips()
            .iter()
            .find(|ip| ip.is_ipv4() == target.is_ipv4());
        let before = pair.requests_over_tls().unwrap();
        let rows = socket_styles(&pair.client, target, &[]).unwrap();
        assert_eq!(rows.len(), 16);
        for row in &rows {
            check(row, target, *own.unwrap(), pair.server.ips());
        }
        let done = rows.iter().filter(|row| row["skipped"] != true).count();
        // The style that sends with its SYN asks twice.
        let expected = before + f64::from(u32::try_from(done).unwrap()) + 1.0;
        eventually(
            &format!("{target}: every request went over mutual TLS"),
            || {
                let after = pair.requests_over_tls()?;
                anyhow::ensure!(after >= expected, "{after} requests, expected {expected}");
                Ok(())
            },
        )
        .unwrap();
    }
}

#[test]
fn loopback_and_own_addresses_never_reach_the_proxy() {
    let pair = Pair::build(test_name!()).unwrap();
    let _mirror = mirror(&pair.client).unwrap();
    let own = pair.client.ips().iter().copied();
    let loopback = ["127.0.0.1", "127.0.0.5", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    for ip in own.chain(loopback) {
        let target = SocketAddr::new(ip, MIRROR);
        for row in socket_styles(&pair.client, target, &["blocking", "nonblocking"]).unwrap() {
            assert_eq!(row["ok"], true, "{target}: {row}");
            let server_peer = address(&row, "server_peer");
            assert_eq!(server_peer, address(&row, "local"), "{target}: {row}");
        }
    }
    let node = pair.world.node_of(&pair.client).unwrap();
    let port = MIRROR.to_string();
    let labels = [("pod", "client"), ("target_port", port.as_str())];
    let seen = node.agent_metrics().unwrap().sum("tcp_open_total", &labels);
    assert_eq!(seen, 0.0, "connections to itself that the agent saw");
}

#[test]
fn skipped_ports_bypass_the_proxy_on_both_sides() {
    let pair = Pair::build(test_name!()).unwrap();
    let world = &pair.world;
    let skip = "config.linkerd.io/skip-inbound-ports";
    let spec = PodSpec::new("plain", "n2")
        .annotation(skip, "9002")
        .meshed();
    let server = world.pod(spec).unwrap();
    let skip = "config.linkerd.io/skip-outbound-ports";
    let spec = PodSpec::new("skipper", "n1")
        .annotation(skip, "9002")
        .meshed();
    let client = world.pod(spec).unwrap();
    let _mirror = mirror(&server).unwrap();
    let row = &socket_styles(&client, server.at(MIRROR), &["blocking"]).unwrap()[0];
    assert_eq!(row["ok"], true, "{row}");
    let seen_by_server = address(row, "server_peer");
    assert_eq!(seen_by_server, address(row, "local"), "end to end: {row}");
}

#[test]
fn udp_is_untouched() {
    let pair = Pair::build(test_name!()).unwrap();
    for ip in pair.server.ips() {
        let bind = || UdpSocket::bind(SocketAddr::new(*ip, 5353));
        let socket = pair.server.netns().enter(bind).unwrap().unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let send = format!("echo -n hello > /dev/udp/{ip}/5353");
        pair.client
            .launch("bash")
            .args(["-c", &send])
            .run()
            .unwrap();
        let mut bytes = [0; 16];
        let (count, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"hello");
        assert!(pair.client.ips().contains(&from.ip()), "from {from}");
    }
}

#[test]
fn a_port_without_listener_is_refused_not_left_hanging() {
    let pair = Pair::build(test_name!()).unwrap();
    let url = format!("http://{}/", pair.server.at(4711));
    let answer = apps::curl(&pair.client, &url, &[]);
    // Nobody listens: an error of the connection, or the proxy's word for it.
    let is_error = answer.as_ref().map_or(true, |(status, _)| *status >= 500);
    assert!(is_error, "{answer:?}");
    pair.works().unwrap();
}
