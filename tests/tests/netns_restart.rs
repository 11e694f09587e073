//! The node daemon and the controller crash and come back under load: nobody notices.

use std::time::Duration;

use weft_tests::{
    PodSpec, apps, cni::Call, eventually_within, fixture::Pair, hammer::Hammer, test_name,
};

#[test]
fn a_crash_of_the_node_daemon_fails_no_request() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let new = Hammer::start(&pair.client, "new", pair.service[0], &[]).unwrap();
    let kept = Hammer::start(&pair.client, "kept", pair.service[0], &["--keep"]).unwrap();
    for _round in 0..2 {
        for node in pair.world.nodes() {
            new.more(50).unwrap();
            node.kill_daemon();
            new.more(20).unwrap();
            node.start_daemon().unwrap();
            new.more(100).unwrap();
            kept.more(100).unwrap();
        }
    }
    new.stop_without_failure().unwrap();
    kept.stop_without_failure().unwrap();
}

#[test]
fn a_restarted_node_daemon_serves_new_and_old_pods() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    for node in pair.world.nodes() {
        node.kill_daemon();
        node.start_daemon().unwrap();
    }
    pair.works_soon().unwrap();
    let late = pair.world.pod(PodSpec::new("late", "n1").meshed()).unwrap();
    let url = format!("http://{}/client-id", pair.service[0]);
    let (status, body) = apps::curl(&late, &url, &[]).unwrap();
    assert_eq!((status, body.trim()), (200, late.identity().as_str()));
    // What the first daemon made, the second takes down.
    pair.world.delete(&pair.client).unwrap();
}

#[test]
fn both_daemons_of_a_node_may_crash_together() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let node = pair.world.node("n1").unwrap();
    node.kill_daemon();
    node.kill_agent();
    node.start_daemon().unwrap();
    node.start_agent().unwrap();
    pair.works_soon().unwrap();
}

#[test]
fn the_controller_may_be_away() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let new = Hammer::start(&pair.client, "new", pair.service[0], &[]).unwrap();
    let kept = Hammer::start(&pair.client, "kept", pair.service[0], &["--keep"]).unwrap();
    new.more(50).unwrap();
    pair.world.kill_controller();
    new.more(300).unwrap();
    kept.more(300).unwrap();
    pair.world.start_controller().unwrap();
    new.more(100).unwrap();
    new.stop_without_failure().unwrap();
    kept.stop_without_failure().unwrap();
    // The streams come back by themselves: a pod made afterwards is found and meshed.
    let late = pair.world.pod(PodSpec::new("late", "n2").meshed()).unwrap();
    pair.world.wait_ready(&late).unwrap();
}

#[test]
fn without_controller_a_new_meshed_pod_does_not_start_in_clear() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.world.kill_controller();
    let late = pair
        .world
        .pod_without_cni(PodSpec::new("late", "n1").meshed());
    let late = late.unwrap();
    let node = pair.world.node("n1").unwrap();
    let error = Call::of("ADD", &late).invoke(node, &late).unwrap_err();
    assert!(!format!("{error:#}").is_empty());
    pair.world.start_controller().unwrap();
    // A kubelet tries again every few seconds.
    let patience = Duration::from_secs(60);
    eventually_within(patience, "ADD succeeds", || {
        Call::of("ADD", &late).invoke(node, &late)
    })
    .unwrap();
    let url = format!("http://{}/client-id", pair.service[0]);
    let (status, body) = apps::curl(&late, &url, &[]).unwrap();
    assert_eq!((status, body.trim()), (200, late.identity().as_str()));
}
