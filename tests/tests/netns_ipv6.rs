//! A cluster without IPv4.

use weft_tests::{
    PodSpec, World, address::Families, apps, capture::Capture, fixture::Pair, pcap::all_tls13,
    test_name,
};

#[test]
fn a_world_of_ipv6_alone_is_meshed() {
    let builder = World::builder(test_name!()).families(Families::V6);
    let pair = Pair::build_in(builder).unwrap();
    pair.works_soon().unwrap();
    let capture = Capture::between_nodes(&pair.world, "v6").unwrap();
    let url = format!("http://{}/echo?canary-v6", pair.server.at(apps::NGINX));
    let (status, body) = apps::curl(&pair.client, &url, &["--globoff"]).unwrap();
    assert_eq!((status, body.trim()), (200, "canary-v6"));
    let cache = pair
        .world
        .pod(PodSpec::new("cache", "n2").port(apps::REDIS).meshed())
        .unwrap();
    let _redis = apps::redis(&cache).unwrap();
    let pong = apps::redis_cli(&pair.client, cache.at(apps::REDIS), &["ping"]).unwrap();
    assert_eq!(pong, "PONG");
    let frames = capture.stop().unwrap();
    assert!(!frames.contains(b"canary-v6"));
    let handshakes = all_tls13(&frames, &[apps::NGINX, apps::REDIS, 4143]).unwrap();
    assert!(handshakes > 0, "{} frames", frames.len());
}

#[test]
fn a_world_of_ipv4_alone_is_meshed() {
    let builder = World::builder(test_name!()).families(Families::V4);
    let pair = Pair::build_in(builder).unwrap();
    pair.works_soon().unwrap();
    assert!(pair.requests_over_tls().unwrap() > 0.0);
}
