//! What is wrong with manifests, and what stays.

use tonic::Code;

use linkerd2_proxy_api::destination::{GetDestination, update::Update};

use crate::world::{ENABLED, SERVICE, World, namespace, next, pod};

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_objects_and_names_the_line() {
    let good = format!("{SERVICE}{}", pod("a", "n1", "10.1.0.1"));
    let world = World::new(&[
        ("shop.yaml", &namespace("shop", ENABLED)),
        ("web.yaml", &good),
    ])
    .await;
    let mut client = world.destination().await;
    let get = GetDestination {
        path: "web.shop.svc.cluster.local:80".to_owned(),
        ..GetDestination::default()
    };
    let mut stream = client.get(get.clone()).await.unwrap().into_inner();
    assert!(matches!(
        next(&mut stream).await.update,
        Some(Update::Add(_))
    ));

    world.write(
        "web.yaml",
        &good.replace("containerPort: 8080", "containerPort: eighty"),
    );
    let shown = world
        .eventually("/debug/problems", |text| text.contains("web.yaml"))
        .await;
    assert!(shown.contains("\"error\""), "{shown}");
    assert!(shown.contains("containerPort"), "{shown}");
    // The service's document has five lines with its separator; the port is in the pod's ninth.
    assert!(
        shown
            .replace(char::is_whitespace, "")
            .contains("\"at\":[14,"),
        "{shown}"
    );
    let metrics = world.admin("/metrics").await;
    assert!(
        metrics.contains("weft_manifest_problems{severity=\"error\"} 1"),
        "{metrics}"
    );
    let mut again = client.get(get).await.unwrap().into_inner();
    assert!(
        matches!(next(&mut again).await.update, Some(Update::Add(_))),
        "still there"
    );

    world.write("web.yaml", &good.replace("10.1.0.1", "10.1.0.7"));
    assert!(matches!(
        next(&mut stream).await.update,
        Some(Update::Add(_))
    ));
    assert!(matches!(
        next(&mut stream).await.update,
        Some(Update::Remove(_))
    ));
    world
        .eventually("/debug/problems", |text| text.ends_with("[]"))
        .await;
    let metrics = world.admin("/metrics").await;
    for line in [
        "weft_manifest_problems{severity=\"error\"} 0",
        "weft_index_objects{kind=\"pod\"} 1",
        "weft_index_objects{kind=\"meshed_pod\"} 1",
        "weft_controller_streams_open{method=\"Destination.Get\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn unknown_fields_kinds_and_duplicates_are_reported_with_their_file() {
    let odd = pod("a", "n1", "10.1.0.1").replace("nodeName", "nodeNam: x\n  nodeName");
    let world = World::new(&[
        ("a.yaml", &odd),
        ("b.yaml", &pod("a", "n2", "10.1.0.2")),
        ("c.yaml", "apiVersion: v1\nkind: Pood\n"),
        ("d.yaml", &namespace("shop", "linkerd.io/inject: enabeld")),
    ])
    .await;
    let shown = world
        .eventually("/debug/problems", |text| {
            text.matches("message").count() == 4
        })
        .await;
    for expected in [
        "spec.nodeNam",
        "is defined in",
        "unknown kind Pood",
        "enabeld",
        "d.yaml",
    ] {
        assert!(shown.contains(expected), "{expected} in {shown}");
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_yet_is_no_empty_cluster() {
    let world = World::without_manifests().await;
    let shown = world
        .eventually("/debug/problems", |text| {
            text.contains("folder cannot be read")
        })
        .await;
    assert!(shown.contains("manifests"), "{shown}");
    assert!(world.admin("/ready").await.contains("503"));
    let request = weft_api::proto::node::WatchPodsRequest {
        node: "n1".to_owned(),
    };
    let watch = world.with_token("n1", request);
    let status = world.node().await.watch_pods(watch).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    std::fs::create_dir(world.manifest("")).unwrap();
    world
        .eventually("/ready", |answer| answer.contains("200 OK"))
        .await;
}

#[tokio::test]
async fn nothing_is_ready_and_nothing_is_answered_before_the_first_read() {
    // A hub that nothing was read into is what a service has before the first read.
    let hub = weft_controller::serve::Hub::new(weft_controller::index::Cluster::default());
    let view = weft_controller::translate::NodePods("n1".into());
    let refused = hub.watch(&view).unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    hub.update(Vec::new());
    assert!(hub.watch(&view).is_ok());
}
