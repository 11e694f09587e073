//! Pods join and leave the mesh while they work: not one request fails.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use weft_tests::{
    Pod, PodSpec, World, apps, eventually, fixture::Pair, hammer::Hammer, manifest::ServiceSpec,
    node::binary, test_name, world,
};

/// Requests that a pod got, by the label that says whether over TLS.
fn inbound(world: &World, node: &str, pod: &str, tls: &str) -> Result<f64> {
    let labels = [("pod", pod), ("direction", "inbound"), ("tls", tls)];
    let scrape = world.node(node)?.agent_metrics()?;
    Ok(scrape.sum("request_total", &labels))
}

/// Waits until no proxy serves a pod any more.
fn gone(world: &World, pod: &Pod) -> Result<()> {
    eventually(&format!("the proxy of {} is gone", pod.spec().name), || {
        let answer = world.pod_admin(pod, "/ready");
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })
}

/// Connections of both kinds, under load while something is changed.
struct Load {
    new: Hammer,
    kept: Hammer,
}

impl Load {
    fn start(client: &Pod, target: SocketAddr) -> Result<Self> {
        Ok(Self {
            new: Hammer::start(client, "new", target, &[])?,
            kept: Hammer::start(client, "kept", target, &["--keep"])?,
        })
    }

    fn goes_on(&self, phase: &str) -> Result<()> {
        self.new
            .more_without_failure(100, &format!("new connections, {phase}"))?;
        self.kept
            .more_without_failure(100, &format!("kept connections, {phase}"))
    }

    fn stop(self) -> Result<()> {
        self.new.stop_without_failure()?;
        self.kept.stop_without_failure().map(drop)
    }
}

#[test]
fn enrolling_and_releasing_pods_under_load_fails_no_request() {
    let world = World::meshed(test_name!()).unwrap();
    let spec = PodSpec::new("web", "n2").port(apps::NGINX);
    let mut server = world.pod(spec).unwrap();
    let mut client = world.pod(PodSpec::new("client", "n1")).unwrap();
    let _nginx = apps::nginx(&server).unwrap();
    let load = Load::start(&client, server.at(apps::NGINX)).unwrap();
    load.goes_on("before").unwrap();
    for _round in 0..2 {
        world
            .change(&mut server, |spec| spec.meshed = true)
            .unwrap();
        world.wait_ready(&server).unwrap();
        load.goes_on("server joined").unwrap();
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
        load.goes_on("client joined").unwrap();
        world
            .change(&mut client, |spec| spec.meshed = false)
            .unwrap();
        gone(&world, &client).unwrap();
        load.goes_on("client left").unwrap();
        world
            .change(&mut server, |spec| spec.meshed = false)
            .unwrap();
        gone(&world, &server).unwrap();
        load.goes_on("server left").unwrap();
    }
    load.stop().unwrap();
}

#[test]
fn a_server_may_leave_and_join_while_its_clients_are_meshed() {
    let mut pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let load = Load::start(&pair.client, pair.service[0]).unwrap();
    for _round in 0..2 {
        load.goes_on("both meshed").unwrap();
        let Pair { world, server, .. } = &mut pair;
        world.change(server, |spec| spec.meshed = false).unwrap();
        gone(world, server).unwrap();
        load.goes_on("server left").unwrap();
        world.change(server, |spec| spec.meshed = true).unwrap();
        pair.world.wait_ready(&pair.server).unwrap();
        load.goes_on("server joined").unwrap();
    }
    load.stop().unwrap();
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
