//! What container runtimes do to a CNI plugin: twice, too late, at the same time, for the same
//! address again.

use anyhow::ensure;
use weft_tests::{
    Node, Pod, PodSpec, World, apps,
    cni::Call,
    eventually,
    fixture::{Pair, descriptors},
    process::Launch,
    test_name,
};

/// Whether capture is set up in a pod's namespace.
fn has_rule(pod: &Pod) -> bool {
    let rules = Launch::new("ip")
        .netns(pod.netns())
        .args(["rule", "show"])
        .run();
    rules.is_ok_and(|rules| rules.contains("1033"))
}

fn call(command: &'static str, node: &Node, pod: &Pod) -> anyhow::Result<serde_json::Value> {
    Call::of(command, pod).invoke(node, pod)
}

#[test]
fn add_passes_the_result_on_and_may_be_repeated() {
    let pair = Pair::build(test_name!()).unwrap();
    let node = pair.world.node("n1").unwrap();
    let result = call("ADD", node, &pair.client).unwrap();
    let expected = weft_tests::cni::previous_result(&pair.client);
    for part in ["interfaces", "ips", "routes"] {
        assert_eq!(result[part], expected[part], "{part}");
    }
    call("CHECK", node, &pair.client).unwrap();
    call("STATUS", node, &pair.client).unwrap();
    let version = call("VERSION", node, &pair.client).unwrap();
    let versions = version["supportedVersions"].to_string();
    assert!(
        versions.contains("1.0.0") && versions.contains("1.1.0"),
        "{versions}"
    );
    pair.works_soon().unwrap();
}

#[test]
fn del_takes_capture_out_and_may_be_repeated() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let node = pair.world.node("n1").unwrap();
    assert!(has_rule(&pair.client));
    for _ in 0..2 {
        call("DEL", node, &pair.client).unwrap();
    }
    assert!(!has_rule(&pair.client));
    let mut gone = Call::of("DEL", &pair.client);
    gone.netns = String::new();
    gone.invoke(node, &pair.client).unwrap();
    let stranger = Call {
        container: "nobody".to_owned(),
        uid: weft_tests::pod::new_uid(),
        ..gone
    };
    stranger.invoke(node, &pair.client).unwrap();
}

#[test]
fn del_while_add_is_pending_leaves_nothing() {
    let world = World::meshed(test_name!()).unwrap();
    let node = world.node("n1").unwrap();
    for round in 0..5 {
        let name = format!("brief-{round}");
        let pod = world
            .pod_without_cni(PodSpec::new(&name, "n1").meshed())
            .unwrap();
        std::thread::scope(|scope| {
            let add = scope.spawn(|| call("ADD", node, &pod));
            let del = scope.spawn(|| call("DEL", node, &pod));
            // Whoever comes second decides; an ADD that is overtaken may fail.
            add.join().unwrap().ok();
            del.join().unwrap().unwrap();
        });
        call("DEL", node, &pod).unwrap();
        assert!(!has_rule(&pod), "{name}");
        pod.netns().delete().unwrap();
        eventually(&format!("namespace of {name} is released"), || {
            ensure!(!has_device(node, &pod), "{} is there", pod.host_device());
            Ok(())
        })
        .unwrap();
    }
}

/// Whether a pod's device is still on its node: it goes with the last user of the namespace.
fn has_device(node: &Node, pod: &Pod) -> bool {
    let line = format!("link show {}", pod.host_device());
    node.netns().ip(&line).is_ok()
}

#[test]
fn deleted_pods_leave_no_descriptor_and_no_namespace() {
    let world = World::meshed(test_name!()).unwrap();
    let node = world.node("n1").unwrap();
    let open = || {
        let pids = [node.daemon_pid().unwrap(), node.agent_pid().unwrap()];
        pids.map(|pid| descriptors(pid).unwrap())
    };
    let cycle = |name: &str| {
        let pod = world.pod(PodSpec::new(name, "n1").meshed()).unwrap();
        world.wait_ready(&pod).unwrap();
        world.delete(&pod).unwrap();
        eventually(&format!("namespace of {name} is released"), || {
            ensure!(!has_device(node, &pod), "{} is there", pod.host_device());
            Ok(())
        })
        .unwrap();
    };
    cycle("warm");
    let before = open();
    for round in 0..10 {
        cycle(&format!("brief-{round}"));
    }
    eventually("descriptors are closed", || {
        let after = open();
        let grown = before
            .iter()
            .zip(after)
            .any(|(before, after)| after > before + 4);
        ensure!(!grown, "{after:?} open, {before:?} before");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_address_may_come_back_with_another_pod() {
    let pair = Pair::build(test_name!()).unwrap();
    let world = &pair.world;
    let node = world.node("n1").unwrap();
    let mut addresses = Vec::new();
    for app in ["first", "second"] {
        let spec = PodSpec::new("reused", "n1").app(app).meshed();
        let pod = world.pod_with_number(spec, 99).unwrap();
        call("ADD", node, &pod).unwrap();
        world.wait_ready(&pod).unwrap();
        let url = format!("http://{}/client-id", pair.service[0]);
        let (status, body) = apps::curl(&pod, &url, &[]).unwrap();
        assert_eq!((status, body.trim()), (200, pod.identity().as_str()));
        addresses.push(pod.ip());
        world.delete(&pod).unwrap();
    }
    assert_eq!(addresses[0], addresses[1]);
}

#[test]
fn the_delete_of_the_pod_before_does_not_touch_the_pod_after() {
    let pair = Pair::build(test_name!()).unwrap();
    let world = &pair.world;
    let node = world.node("n1").unwrap();
    let spec = PodSpec::new("reused", "n1").meshed();
    let first = world.pod_with_number(spec.clone(), 99).unwrap();
    call("ADD", node, &first).unwrap();
    let late_delete = Call {
        netns: String::new(),
        ..Call::of("DEL", &first)
    };
    first.netns().delete().unwrap();
    eventually("the first pod's device is gone or can be removed", || {
        let line = format!("link del {}", first.host_device());
        node.netns()
            .ip(&line)
            .map(drop)
            .or_else(|error| match has_device(node, &first) {
                true => Err(error),
                false => Ok(()),
            })
    })
    .unwrap();
    let spec = PodSpec {
        uid: weft_tests::pod::new_uid(),
        ..spec
    };
    let second = world.pod_with_number(spec, 99).unwrap();
    call("ADD", node, &second).unwrap();
    late_delete.invoke(node, &first).unwrap();
    world.wait_ready(&second).unwrap();
    assert!(has_rule(&second));
    let url = format!("http://{}/client-id", pair.service[0]);
    let (status, body) = apps::curl(&second, &url, &[]).unwrap();
    assert_eq!((status, body.trim()), (200, second.identity().as_str()));
}

#[test]
fn without_the_node_daemon_no_meshed_pod_starts() {
    let world = World::meshed(test_name!()).unwrap();
    let node = world.node("n1").unwrap();
    node.kill_daemon();
    let pod = world
        .pod_without_cni(PodSpec::new("early", "n1").meshed())
        .unwrap();
    let error = call("ADD", node, &pod).unwrap_err().to_string();
    assert!(error.contains("code") && error.contains("msg"), "{error}");
    node.start_daemon().unwrap();
    call("ADD", node, &pod).unwrap();
    world.wait_ready(&pod).unwrap();
}
