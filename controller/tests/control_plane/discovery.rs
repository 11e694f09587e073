//! Linkerd's destination and policy APIs.

use std::net::SocketAddr;

use linkerd2_proxy_api::{
    destination::{GetDestination, Update, update::Update as Kind},
    inbound::{PortSpec, proxy_protocol::Kind as Inbound},
    outbound::{TrafficSpec, proxy_protocol::Kind as Outbound, traffic_spec::Target},
};
use tonic::Code;

use crate::world::{ENABLED, SERVICE, World, end, namespace, next, pod};

const WEB: &str = "web.shop.svc.cluster.local:80";

fn get(path: &str) -> GetDestination {
    GetDestination {
        path: path.to_owned(),
        context_token: r#"{"ns":"shop","nodeName":"n1","pod":"x"}"#.to_owned(),
        ..GetDestination::default()
    }
}

fn show(update: Update) -> String {
    let ip = |ip: Option<_>| -> SocketAddr {
        let addr: linkerd2_proxy_api::net::TcpAddress = ip.unwrap();
        let ip = addr.ip.unwrap().try_into().unwrap();
        SocketAddr::new(ip, addr.port.try_into().unwrap())
    };
    match update.update.unwrap() {
        Kind::Add(set) => {
            assert_eq!(set.metric_labels["service"], "web");
            let shown: Vec<_> = set
                .addrs
                .into_iter()
                .map(|one| {
                    let tls = if one.tls_identity.is_some() {
                        " tls"
                    } else {
                        ""
                    };
                    format!("{}{tls}", ip(one.addr))
                })
                .collect();
            format!("add {}", shown.join(", "))
        }
        Kind::Remove(set) => {
            let shown: Vec<_> = set
                .addrs
                .into_iter()
                .map(|one| ip(Some(one)).to_string())
                .collect();
            format!("remove {}", shown.join(", "))
        }
        Kind::NoEndpoints(none) => format!("none, exists: {}", none.exists),
    }
}

#[tokio::test]
async fn endpoints_follow_the_manifests() {
    let world = World::new(&[
        ("shop.yaml", &namespace("shop", ENABLED)),
        ("svc.yaml", SERVICE),
    ])
    .await;
    let mut client = world.destination().await;
    let mut stream = client.get(get(WEB)).await.unwrap().into_inner();
    assert_eq!(show(next(&mut stream).await), "none, exists: true");
    world.write("a.yaml", &pod("a", "n1", "10.1.0.1"));
    assert_eq!(show(next(&mut stream).await), "add 10.1.0.1:8080 tls");
    world.write("b.yaml", &pod("b", "n2", "10.1.0.2"));
    assert_eq!(show(next(&mut stream).await), "add 10.1.0.2:8080 tls");
    world.write("shop.yaml", &namespace("shop", ""));
    assert_eq!(
        show(next(&mut stream).await),
        "add 10.1.0.1:8080, 10.1.0.2:8080"
    );
    std::fs::remove_file(world.manifest("a.yaml")).unwrap();
    assert_eq!(show(next(&mut stream).await), "remove 10.1.0.1:8080");
    std::fs::rename(world.manifest("b.yaml"), world.manifest("b.txt")).unwrap();
    assert_eq!(show(next(&mut stream).await), "none, exists: true");
    std::fs::remove_file(world.manifest("svc.yaml")).unwrap();
    assert_eq!(show(next(&mut stream).await), "none, exists: false");
    assert_eq!(end(&mut stream).await.code(), Code::NotFound);
    let status = client.get(get(WEB)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for (path, message) in [
        ("foo", "Invalid authority: foo"),
        (
            "10.96.0.1:80",
            "IP queries not supported by Get API: host=10.96.0.1",
        ),
    ] {
        let status = client.get(get(path)).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, message)
        );
    }
}

#[tokio::test]
async fn profiles_follow_the_manifests() {
    let files = [
        ("shop.yaml", namespace("shop", ENABLED)),
        ("a.yaml", pod("a", "n1", "10.1.0.1")),
    ];
    let world = World::new(&files.each_ref().map(|(name, text)| (*name, text.as_str()))).await;
    let mut client = world.destination().await;
    let mut stream = client
        .get_profile(get("10.96.0.1:80"))
        .await
        .unwrap()
        .into_inner();
    let bare = next(&mut stream).await;
    assert!(
        bare.endpoint.unwrap().tls_identity.is_none(),
        "an address that nobody has"
    );
    world.write("svc.yaml", SERVICE);
    let service = next(&mut stream).await;
    assert_eq!(service.fully_qualified_name, "web.shop.svc.cluster.local");
    assert!(!service.opaque_protocol);
    let opaque = "namespace: shop, annotations: {config.linkerd.io/opaque-ports: http}}";
    world.write("svc.yaml", &SERVICE.replace("namespace: shop}", opaque));
    assert!(next(&mut stream).await.opaque_protocol);
    let mut stream = client
        .get_profile(get("10.1.0.1:8080"))
        .await
        .unwrap()
        .into_inner();
    let endpoint = next(&mut stream).await.endpoint.unwrap();
    assert!(endpoint.tls_identity.is_some());
    assert_eq!(endpoint.metric_labels["pod"], "a");
    let mut stream = client
        .get_profile(get("10.96.0.1:1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        next(&mut stream).await,
        linkerd2_proxy_api::destination::DestinationProfile::default()
    );
}

#[tokio::test]
async fn outbound_policies_are_served_by_address_and_by_name() {
    let world = World::new(&[("svc.yaml", SERVICE)]).await;
    let mut client = world.outbound().await;
    let spec = |target| TrafficSpec {
        source_workload: r#"{"ns":"shop","pod":"x"}"#.to_owned(),
        target: Some(target),
    };
    let addr = |text: &str| Target::Addr(text.parse::<SocketAddr>().unwrap().into());
    let mut stream = client
        .watch(spec(addr("10.96.0.1:80")))
        .await
        .unwrap()
        .into_inner();
    let kind = next(&mut stream).await.protocol.unwrap().kind.unwrap();
    assert!(matches!(kind, Outbound::Detect(_)));
    world.write(
        "svc.yaml",
        &SERVICE.replace("name: http,", "name: http, appProtocol: http,"),
    );
    let kind = next(&mut stream).await.protocol.unwrap().kind.unwrap();
    assert!(matches!(kind, Outbound::Http1(_)));
    let sql = client
        .get(spec(addr("10.96.0.1:5432")))
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(
        sql.protocol.unwrap().kind.unwrap(),
        Outbound::Opaque(_)
    ));
    let named = client
        .get(spec(Target::Authority(WEB.to_owned())))
        .await
        .unwrap();
    assert!(named.into_inner().metadata.is_some());
    let outside = client.get(spec(addr("203.0.113.1:443"))).await.unwrap();
    assert!(outside.into_inner().metadata.is_some());
    let inside = client.watch(spec(addr("10.1.0.1:80"))).await.unwrap_err();
    assert_eq!(inside.code(), Code::NotFound);
    let nonsense = TrafficSpec {
        source_workload: "nonsense".to_owned(),
        target: Some(addr("10.96.0.1:80")),
    };
    let status = client.watch(nonsense).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    std::fs::remove_file(world.manifest("svc.yaml")).unwrap();
    assert_eq!(end(&mut stream).await.code(), Code::NotFound);
}

#[tokio::test]
async fn inbound_policies_follow_the_namespace() {
    let files = [
        ("shop.yaml", namespace("shop", ENABLED)),
        ("a.yaml", pod("a", "n1", "10.1.0.1")),
    ];
    let world = World::new(&files.each_ref().map(|(name, text)| (*name, text.as_str()))).await;
    let mut client = world.inbound().await;
    let port = |workload: &str, port| PortSpec {
        workload: workload.to_owned(),
        port,
    };
    let a = r#"{"ns":"shop","pod":"a"}"#;
    let mut stream = client.watch_port(port(a, 8080)).await.unwrap().into_inner();
    let server = next(&mut stream).await;
    assert_eq!(server.labels["name"], "all-unauthenticated");
    let Some(Inbound::Detect(detect)) = server.protocol.unwrap().kind else {
        panic!("8080 is detected");
    };
    assert_eq!(detect.http_routes.len(), 2, "probe and default");
    let deny = "linkerd.io/inject: enabled, config.linkerd.io/default-inbound-policy: deny";
    world.write("shop.yaml", &namespace("shop", deny));
    let server = next(&mut stream).await;
    assert_eq!(server.labels["name"], "deny");
    assert_eq!(server.authorizations, []);
    let other = client
        .get_port(port("shop:a", 5432))
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(
        other.protocol.unwrap().kind,
        Some(Inbound::Opaque(_))
    ));
    for (workload, number, code) in [
        (r#"{"ns":"shop","pod":"nobody"}"#, 80, Code::NotFound),
        ("nonsense", 80, Code::InvalidArgument),
        (a, 0, Code::InvalidArgument),
        (a, 70_000, Code::InvalidArgument),
    ] {
        let status = client.watch_port(port(workload, number)).await.unwrap_err();
        assert_eq!(status.code(), code, "{workload} {number}");
    }
    std::fs::remove_file(world.manifest("a.yaml")).unwrap();
    assert_eq!(end(&mut stream).await.code(), Code::NotFound);
}
