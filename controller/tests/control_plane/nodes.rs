//! `weft.node.v1`.

use std::fs;

use tonic::Code;
use weft_api::{
    model,
    proto::node::{PodsUpdate, WatchPodsRequest, WatchTrustBundleRequest, pods_update::Update},
};

use crate::world::{ENABLED, World, namespace, next, pod};

fn request(node: &str) -> WatchPodsRequest {
    WatchPodsRequest {
        node: node.to_owned(),
    }
}

fn show(update: PodsUpdate) -> String {
    let pod = |pod| {
        let pod = model::Pod::try_from(pod).unwrap();
        let mesh = match pod.mesh {
            model::Mesh::Meshed => "meshed",
            model::Mesh::NotMeshed(_) => "not meshed",
            model::Mesh::Skipped(_) => "skipped",
        };
        format!("{} {mesh}", pod.name)
    };
    match update.update.unwrap() {
        Update::Snapshot(list) => {
            let pods: Vec<_> = list.pods.into_iter().map(pod).collect();
            format!("[{}]", pods.join(", "))
        }
        Update::Upserted(one) => pod(one),
        Update::RemovedUid(_) => "removed".to_owned(),
    }
}

#[tokio::test]
async fn a_node_sees_its_own_pods_and_their_changes() {
    let shop = namespace("shop", ENABLED);
    let (a, b) = (pod("a", "n1", "10.1.0.1"), pod("b", "n2", "10.1.0.2"));
    let world = World::new(&[("shop.yaml", &shop), ("a.yaml", &a), ("b.yaml", &b)]).await;
    let mut client = world.node().await;
    let watch = world.with_token("n1", request("n1"));
    let mut stream = client.watch_pods(watch).await.unwrap().into_inner();
    assert_eq!(show(next(&mut stream).await), "[a meshed]");
    world.write("c.yaml", &pod("c", "n1", "10.1.0.3"));
    assert_eq!(show(next(&mut stream).await), "c meshed");
    let host = pod("c", "n1", "10.1.0.3").replace("nodeName", "hostNetwork: true\n  nodeName");
    world.write("c.yaml", &host);
    assert_eq!(show(next(&mut stream).await), "c skipped");
    world.write("c.yaml", &pod("c", "n2", "10.1.0.3"));
    assert_eq!(show(next(&mut stream).await), "removed");
    world.write("a.yaml", &a.replace("phase: Running", "phase: Succeeded"));
    assert_eq!(show(next(&mut stream).await), "removed");
}

#[tokio::test]
async fn a_token_opens_its_own_node_only() {
    let world = World::new(&[]).await;
    let mut client = world.node().await;
    let foreign = world.with_token("n2", request("n1"));
    let status = client.watch_pods(foreign).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("\"n1\"") && status.message().contains("\"n2\""));
    let status = client.watch_pods(request("n1")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut forged = world.with_token("n2", request("n1"));
    let token = "Bearer weft-join-v1:n1:guess".parse().unwrap();
    forged.metadata_mut().insert("authorization", token);
    let status = client.watch_pods(forged).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = client
        .watch_trust_bundle(WatchTrustBundleRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_replaced_trust_bundle_is_sent_at_once() {
    let world = World::new(&[]).await;
    let mut client = world.node().await;
    let watch = world.with_token("n1", WatchTrustBundleRequest {});
    let mut stream = client.watch_trust_bundle(watch).await.unwrap().into_inner();
    let first = next(&mut stream).await.pem;
    let file = world.state("trust-anchors.pem");
    assert_eq!(first, fs::read_to_string(&file).unwrap());
    let other = World::new(&[]).await;
    let second = fs::read_to_string(other.state("trust-anchors.pem")).unwrap();
    // Both: peers whose certificates are of the old anchor are still trusted.
    fs::write(&file, format!("{first}{second}")).unwrap();
    assert_eq!(next(&mut stream).await.pem, format!("{first}{second}"));
}

#[tokio::test]
async fn streams_end_when_the_controller_stops_and_a_restart_keeps_the_anchors() {
    let world = World::new(&[]).await;
    let mut client = world.node().await;
    let watch = world.with_token("n1", WatchTrustBundleRequest {});
    let mut stream = client.watch_trust_bundle(watch).await.unwrap().into_inner();
    let first = next(&mut stream).await.pem;
    let token = world.token("n1");
    let world = world.restart(&[]).await;
    assert_eq!(
        crate::world::end(&mut stream).await.code(),
        Code::Unavailable
    );
    assert_eq!(
        fs::read_to_string(world.state("trust-anchors.pem")).unwrap(),
        first
    );
    assert_eq!(world.token("n1"), token);
    let mut client = world.node().await;
    let watch = world.with_token("n1", WatchTrustBundleRequest {});
    let mut stream = client.watch_trust_bundle(watch).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.pem, first);
}
