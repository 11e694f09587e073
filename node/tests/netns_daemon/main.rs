//! The daemon and the plugin for real: a pod is added, meshed, lent to an agent, repaired, survives a
//! restart of the daemon, and is deleted.
//!
//! Needs root and a kernel with the features that `weft-node preflight` asks for. Everything is
//! named `wn-…` and removed.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests panic like tests"
)]

mod controller;
mod world;

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use tokio::task::JoinSet;

use weft_api::{model::Mesh, proto::lend::Listener};
use weft_node::pods::status::Standing;
use world::{PEER_IP, POD_IP, SERVICE, UID, World, eventually, pod, previous_result};

#[tokio::test]
async fn a_pod_is_meshed_before_add_returns_and_gone_after_del() {
    let mut world = World::new("path");
    world.wanted(&[pod(UID, Mesh::Meshed)]);
    world.start().await;
    let mut agent = world.agent().await;

    let printed = world.cni_ok("ADD", UID);
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed, previous_result(), "passed through unchanged");
    assert!(world.is_meshed(UID), "{:?}", world.status(UID));
    assert_eq!(
        world.cni_ok("ADD", UID).len(),
        world.cni_ok("ADD", UID).len()
    );
    world.cni_ok("CHECK", UID);

    let added = agent.hear_added().await;
    assert_eq!(added.listeners.len(), 6);
    assert!(added.ips.contains(&POD_IP.to_owned()), "{added:?}");

    // An application's connection arrives at the agent, which sees where it was going.
    let mut client = world.pod.connect(SERVICE).unwrap();
    let mut accepted = agent.accept(UID, Listener::OutboundV4).await;
    let service: SocketAddr = SERVICE.parse().unwrap();
    assert_eq!(accepted.local_addr().unwrap(), service);
    assert_eq!(client.peer_addr().unwrap(), service);
    client.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    #[cfg(feature = "kernel-log")]
    eventually("the kernel programs' lines are in the log", || {
        world.log().contains("capture_connect4 captured ")
    })
    .await;

    // A lent socket leaves with the pod's address and is not captured.
    let server = world.peer.serve(&format!("{PEER_IP}:8080"));
    let sockets = agent.borrow(UID, 64).await;
    assert_eq!(sockets.len(), 64);
    let destination: SocketAddr = format!("{PEER_IP}:8080").parse().unwrap();
    sockets[0].set_nonblocking(false).unwrap();
    sockets[0].connect(&destination.into()).unwrap();
    let (_served, from) = server.accept().unwrap();
    assert_eq!(from.as_socket().unwrap().ip().to_string(), POD_IP);

    // What arrives for the application's port arrives at the agent.
    let arriving = world.peer.connect(&format!("{POD_IP}:8080")).unwrap();
    let arrived = agent.accept(UID, Listener::InboundV4).await;
    assert_eq!(arrived.peer_addr().unwrap(), arriving.local_addr().unwrap());

    world.cni_ok("DEL", UID);
    assert_eq!(agent.hear_removed().await, UID);
    assert_eq!(world.status(UID), None);
    assert!(!world.pod.ip("rule").contains("1033"));
    assert!(
        !world
            .run_dir
            .path()
            .join(format!("pods/{UID}.json"))
            .exists()
    );
    world.cni_ok("DEL", UID);
    drop((client, accepted, sockets));
    eventually("no descriptor of the pod is left in the daemon", || {
        !holds_namespace(world.daemon_pid(), &world.pod.path())
    })
    .await;
}

/// Whether a process has the namespace open, or any TCP socket.
fn holds_namespace(pid: u32, netns: &std::path::Path) -> bool {
    let wanted = fs::read_link(netns).unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == wanted))
}

#[tokio::test]
async fn a_restarted_daemon_takes_listeners_back_and_no_connection_notices() {
    let mut world = World::new("restart");
    world.wanted(&[pod(UID, Mesh::Meshed)]);
    world.start().await;
    let mut agent = world.agent().await;
    world.cni_ok("ADD", UID);
    agent.hear_added().await;
    let mut live = world.pod.connect(SERVICE).unwrap();
    let mut accepted = agent.accept(UID, Listener::OutboundV4).await;

    world.kill();
    // Captured and queued while no daemon runs, because the agent holds the listener too.
    let mut queued = world.pod.connect(SERVICE).unwrap();
    world.start().await;
    assert_eq!(world.status(UID).unwrap().standing, Standing::Adopting);
    let socket = world.run_dir.path().join("node.sock");
    agent.reconnect(&socket).await;
    assert_eq!(agent.generation, 1);
    let before: Vec<u64> = agent
        .listeners
        .values()
        .map(|l| l.cookie().unwrap())
        .collect();
    agent.hear_added().await;
    let after: Vec<u64> = agent
        .listeners
        .values()
        .map(|l| l.cookie().unwrap())
        .collect();
    assert_eq!(before, after, "the same sockets");
    assert!(world.is_meshed(UID), "{:?}", world.status(UID));

    live.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    let mut late = agent.accept(UID, Listener::OutboundV4).await;
    queued.write_all(b"y").unwrap();
    late.read_exact(&mut [0]).unwrap();
    assert_eq!(agent.borrow(UID, 1).await.len(), 1);
    world.cni_ok("DEL", UID);
    assert_eq!(agent.hear_removed().await, UID);
}

#[tokio::test]
async fn after_both_died_listeners_are_made_anew() {
    let mut world = World::new("both");
    world.wanted(&[pod(UID, Mesh::Meshed)]);
    world.start().await;
    world.cni_ok("ADD", UID);
    world.kill();
    world.start().await;
    eventually("the pod is meshed again", || world.is_meshed(UID)).await;
    let mut agent = world.agent().await;
    agent.hear_added().await;
    let _client = world.pod.connect(SERVICE).unwrap();
    agent.accept(UID, Listener::OutboundV4).await;
}

#[tokio::test]
async fn what_a_pod_breaks_is_repaired() {
    let mut world = World::new("repair");
    world.wanted(&[pod(UID, Mesh::Meshed)]);
    world.start().await;
    world.cni_ok("ADD", UID);
    for broken in [
        "rule del pref 100",
        "route flush table 1033",
        "-6 rule del pref 100",
    ] {
        world.pod.ip(broken);
        eventually(broken, || {
            let rules = world.pod.ip("rule") + &world.pod.ip("-6 rule");
            let routes = world.pod.ip("route show table 1033");
            rules.matches("1033").count() == 2 && routes.contains(POD_IP)
        })
        .await;
    }
}

#[tokio::test]
async fn pods_outside_the_mesh_start_with_and_without_the_daemon_and_others_do_not() {
    let mut world = World::new("outside");
    let unmeshed = Mesh::NotMeshed("nobody asked".to_owned());
    world.wanted(&[pod("wn-plain", unmeshed), pod(UID, Mesh::Meshed)]);

    world.cni_ok("ADD", "wn-plain");
    for uid in [UID, "wn-stranger"] {
        let output = world.cni("ADD", uid);
        assert!(!output.status.success());
        let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["code"], 11, "{error}");
    }
    world.cni_ok("DEL", "wn-stranger");

    world.start().await;
    eventually("the missed pod is known", || {
        world.status("wn-plain").is_some()
    })
    .await;
    world.cni_ok("ADD", "wn-plain");
    assert_eq!(
        world.status("wn-plain").unwrap().standing,
        Standing::Unmeshed
    );
    assert!(!world.pod.ip("rule").contains("1033"));
    // The same address and namespace under another uid: the old pod is gone.
    world.cni_ok("ADD", UID);
    assert_eq!(world.status("wn-plain"), None);
    assert!(world.is_meshed(UID));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_pod_enters_and_leaves_without_a_lost_connection() {
    let mut world = World::new("late");
    let unmeshed = pod(UID, Mesh::NotMeshed("nobody asked".to_owned()));
    let controller = world
        .start_controlled(std::slice::from_ref(&unmeshed))
        .await;
    let mut agent = world.agent().await;
    world.cni_ok("ADD", UID);
    assert_eq!(world.status(UID).unwrap().standing, Standing::Unmeshed);
    let server = world.peer.serve(&format!("{PEER_IP}:8080"));
    let mut old = world.pod.connect(&format!("{PEER_IP}:8080")).unwrap();
    let (mut old_served, _) = server.accept().unwrap();

    controller.upsert(&pod(UID, Mesh::Meshed)).await;
    agent.hear_added().await;
    eventually("the pod is meshed", || world.is_meshed(UID)).await;
    let status = world.status(UID).unwrap();
    assert_eq!(
        (status.legacy_connections, status.guard.as_str()),
        (1, "enforce")
    );
    old.write_all(b"x").unwrap();
    old_served.read_exact(&mut [0]).unwrap();
    let mut client = world.pod.connect(&format!("{PEER_IP}:8080")).unwrap();
    let mut accepted = agent.accept(UID, Listener::OutboundV4).await;
    drop((old, old_served));
    eventually("the old connection is not counted any more", || {
        world.status(UID).unwrap().legacy_connections == 0
    })
    .await;

    // What is captured goes on while the pod leaves; new connections are not captured.
    controller.upsert(&unmeshed).await;
    assert_eq!(agent.hear_removed().await, UID);
    client.write_all(b"y").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    let _direct = world.pod.connect(&format!("{PEER_IP}:8080")).unwrap();
    server.accept().unwrap();
    // The agent does not finish: the rest is cut, and never leaves the pod in clear.
    eventually("the pod has left", || {
        world.status(UID).unwrap().standing == Standing::Unmeshed
    })
    .await;
    assert!(client.read(&mut [0]).is_err(), "reset");
    assert!(!world.pod.ip("rule").contains("1033"));
    let log = world.log();
    assert!(
        log.contains("connections of a pod that leaves are cut"),
        "{log}"
    );

    controller.upsert(&pod(UID, Mesh::Meshed)).await;
    agent.hear_added().await;
    world.cni_ok("DEL", UID);
    assert_eq!(agent.hear_removed().await, UID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn add_waits_for_the_controller_to_name_the_pod() {
    let mut world = World::new("wait");
    let controller = world.start_controlled(&[]).await;
    let output = world.cni("ADD", UID);
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["msg"].as_str().unwrap().contains("has not announced"),
        "{error}"
    );
    let mut announcing = JoinSet::new();
    announcing.spawn(async move {
        // While ADD waits, which the plugin's process does.
        tokio::time::sleep(Duration::from_millis(300)).await;
        controller.upsert(&pod(UID, Mesh::Meshed)).await;
        controller
    });
    let added = world.cni("ADD", UID);
    assert!(added.status.success());
    assert!(world.is_meshed(UID));
}

#[tokio::test]
async fn cleanup_refuses_beside_a_daemon_and_leaves_nothing_after_it() {
    let mut world = World::new("cleanup");
    world.wanted(&[pod(UID, Mesh::Meshed)]);
    world.start().await;
    world.cni_ok("ADD", UID);
    let refused = world.clean_up();
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && stderr.contains("another weft-node"),
        "{stderr}"
    );
    assert!(world.is_meshed(UID));

    world.kill();
    let done = world.clean_up();
    let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{stderr}");
    assert!(!world.pod.ip("rule").contains("1033"));
    let records = fs::read_dir(world.run_dir.path().join("pods")).unwrap();
    assert_eq!(records.count(), 0);
    let server = world.peer.serve(&format!("{PEER_IP}:8080"));
    let _direct = world.pod.connect(&format!("{PEER_IP}:8080")).unwrap();
    server.accept().unwrap();
}
