//! Pods join and leave the mesh while they work: not one request fails.

use anyhow::{Result, ensure};
use weft_tests::{
    PodSpec, World, apps, eventually, fixture::Pair, hammer::Hammer, manifest::ServiceSpec,
    node::binary, test_name, world,
};

/// Requests that a pod got, by the label that says whether over TLS.
fn inbound(world: &World, node: &str, pod: &str, tls: &str) -> Result<f64> {
    let labels = [("pod", pod), ("direction", "inbound"), ("tls", tls)];
    let scrape = world.node(node)?.agent_metrics()?;
    Ok(scrape.sum("request_total", &labels))
}

#[test]
fn enrolling_and_releasing_pods_under_load_fails_no_request() {
    let world = World::meshed(test_name!()).unwrap();
    let spec = PodSpec::new("web", "n2").port(apps::NGINX);
    let mut server = world.pod(spec).unwrap();
    let mut client = world.pod(PodSpec::new("client", "n1")).unwrap();
    let _nginx = apps::nginx(&server).unwrap();
    let target = server.at(apps::NGINX);
    let new = Hammer::start(&client, "new", target, &[]).unwrap();
    let kept = Hammer::start(&client, "kept", target, &["--keep"]).unwrap();
    new.more(50).unwrap();
    for round in 0..2 {
        world
            .change(&mut server, |spec| spec.meshed = true)
            .unwrap();
        eventually("requests reach the server through its proxy", || {
            let count = inbound(&world, "n2", "web", "no_identity")?;
            ensure!(count > 0.0 || round > 0, "{count} requests");
            world.pod_admin(&server, "/ready").map(drop)
        })
        .unwrap();
        world
            .change(&mut client, |spec| spec.meshed = true)
            .unwrap();
        let before = inbound(&world, "n2", "web", "true").unwrap();
        eventually("requests are over mutual TLS", || {
            let count = inbound(&world, "n2", "web", "true")?;
            ensure!(count > before, "{count} requests, {before} before");
            Ok(())
        })
        .unwrap();
        new.more(100).unwrap();
        kept.more(100).unwrap();
        world
            .change(&mut client, |spec| spec.meshed = false)
            .unwrap();
        world
            .change(&mut server, |spec| spec.meshed = false)
            .unwrap();
        eventually("the server's proxy is gone", || {
            let answer = world.pod_admin(&server, "/ready");
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })
        .unwrap();
        new.more(100).unwrap();
        kept.more(100).unwrap();
    }
    new.stop_without_failure().unwrap();
    kept.stop_without_failure().unwrap();
}

#[test]
fn a_connection_from_before_goes_on_after_enrolment() {
    let world = World::meshed(test_name!()).unwrap();
    let server = world.pod(PodSpec::new("web", "n2")).unwrap();
    let mut client = world.pod(PodSpec::new("client", "n1")).unwrap();
    let _nginx = apps::nginx(&server).unwrap();
    let styles = binary(&world::programs().unwrap(), "socket-styles").unwrap();
    let target = server.at(apps::NGINX).to_string();
    let launch = client.launch(styles).args(["hold", &target]).keep_stdin();
    let mut held = client.spawn("held", launch).unwrap();
    held.wait_for("connected").unwrap();
    world
        .change(&mut client, |spec| spec.meshed = true)
        .unwrap();
    world.wait_ready(&client).unwrap();
    held.write_line("GET / HTTP/1.1").unwrap();
    held.wait_for("sent").unwrap();
    assert!(!held.log().contains("failed"), "{}", held.log());
}

#[test]
fn a_replica_that_goes_takes_no_request_with_it() {
    let pair = Pair::build(test_name!()).unwrap();
    let world = &pair.world;
    world
        .service(&ServiceSpec::new("other", 80, apps::NGINX))
        .unwrap();
    let spec = PodSpec::new("web-b", "n1")
        .app("web")
        .port(apps::NGINX)
        .meshed();
    let second = world.pod(spec).unwrap();
    let _nginx = apps::nginx(&second).unwrap();
    pair.works_soon().unwrap();
    let load = Hammer::start(&pair.client, "load", pair.service[0], &[]).unwrap();
    load.more(200).unwrap();
    // As Kubernetes does: out of the endpoints first, then gone.
    world
        .manifests()
        .remove(&format!(
            "pod-{}-{}",
            second.spec().namespace,
            second.spec().name
        ))
        .unwrap();
    load.more(200).unwrap();
    load.stop_without_failure().unwrap();
}
