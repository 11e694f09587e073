//! Connections that are bytes, through both sides.

use std::sync::Arc;

use super::rig::*;
use crate::{
    discovery::model::{Destination, Endpoint, EndpointSet, Hint, Protocol},
    policy::limit::{Limit, Limits},
    tls::testing::{Ca, soon},
};

/// Says hello, then repeats what it hears.
async fn greeter() -> Application {
    Application::serving(|mut peer, _log| async move {
        peer.send("hello\n").await;
        loop {
            let line = peer.until("\n").await;
            if line.is_empty() {
                break;
            }
            peer.send(line).await;
        }
        peer.send("bye\n").await;
    })
    .await
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once_and_half_close_is_kept() {
    for way in [Way::Plain, Way::Direct, Way::Tagged] {
        let application = greeter().await;
        let mesh = Mesh2::with(application.addr, way, Hint::Opaque, Protocol::Opaque).await;
        if way == Way::Direct {
            // An opaque port is never looked into for TLS: such endpoints are reached tagged.
            mesh.app.allows(
                application.addr.port(),
                server(Protocol::Tls, vec![anybody()]),
            );
        }
        let mut client = mesh.connect().await;
        assert_eq!(client.until("\n").await, "hello\n", "{way:?}");
        client.send("any\n").await;
        assert_eq!(client.until("\n").await, "any\n", "{way:?}");
        let mut stream = client;
        tokio::io::AsyncWriteExt::shutdown(&mut stream.stream)
            .await
            .unwrap();
        assert_eq!(stream.rest().await, "bye\n", "{way:?}");
        let (web, app) = (&mesh.web, &mesh.app);
        eventually("connections are counted", || {
            web.count("tcp_close_total", &["peer=\"dst\"", "errno=\"\""]) == 1
                && app.count("tcp_close_total", &["peer=\"src\"", "errno=\"\""]) == 1
        })
        .await;
        assert_eq!(web.count("tcp_read_bytes_total", &["peer=\"src\""]), 4);
        assert_eq!(web.count("tcp_write_bytes_total", &["peer=\"src\""]), 14);
        assert_eq!(app.count("tcp_write_bytes_total", &["peer=\"dst\""]), 4);
        assert_eq!(
            app.count("inbound_tcp_authz_allow_total", &["authz_name=\"anybody\""]),
            1
        );
    }
}

#[tokio::test]
async fn what_is_not_http_is_passed_on_as_bytes_after_detection() {
    let application = greeter().await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    client
        .send("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n")
        .await;
    assert_eq!(client.until("hello\n").await, "hello\n");
    assert_eq!(
        client.exactly(28).await,
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n"
    );
}

#[tokio::test]
async fn tls_of_the_applications_own_passes_untouched() {
    let application = greeter().await;
    let ca = Ca::new("root");
    let app = Pod::new(&ca, APP);
    app.allows(
        application.addr.port(),
        server(Protocol::Detect, vec![anybody()]),
    );
    let steered = app.steer(application.addr).await;
    let credentials = ca.credentials(WEB);
    let stream = soon(tokio::net::TcpStream::connect(steered)).await.unwrap();
    let other = crate::tls::ServerId {
        identity: WEB.parse().unwrap(),
        server_name: WEB.into(),
    };
    let refused = soon(crate::tls::client::connect(
        stream,
        &credentials,
        &other,
        false,
    ))
    .await;
    assert!(refused.is_err(), "the application does not speak TLS");
    let sni = format!("tls=\"opaque\",sni=\"{WEB}\"");
    assert_eq!(app.count("tcp_open_total", &[&sni]), 1);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_for_one_that_does_not() {
    let application = greeter().await;
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let at = |port| Endpoint::plain(([0, 0, 0, 0], port).into());
    let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = refusing.local_addr().unwrap().port();
    drop(refusing);
    let set = EndpointSet::fixed("app:80", vec![at(refused), at(application.addr.port())]);
    let set = Destination::Balance(Arc::new(set));
    web.knows(service(), target(Protocol::Opaque, set));
    let captured = web.capture(service()).await;
    for _ in 0..8 {
        let mut client = Raw::connect(captured).await;
        assert_eq!(client.until("\n").await, "hello\n");
    }
}

#[tokio::test]
async fn loops_foreign_addresses_and_unknown_destinations_are_refused() {
    let application = greeter().await;
    let ca = Ca::new("root");
    let (web, app) = (Pod::new(&ca, WEB), Pod::new(&ca, APP));
    let looping = web.capture("127.0.0.1:4140".parse().unwrap()).await;
    assert_eq!(Raw::connect(looping).await.rest().await, "");
    assert_eq!(
        web.count("outbound_tcp_errors_total", &["error=\"unexpected\""]),
        1
    );
    let foreign = app.steer("10.9.9.9:80".parse().unwrap()).await;
    assert_eq!(Raw::connect(foreign).await.rest().await, "");
    assert_eq!(
        app.count("inbound_tcp_errors_total", &["target_ip=\"10.9.9.9\""]),
        1
    );
    assert_eq!(application.connections(), 0);
}

#[tokio::test]
async fn connections_over_the_pods_limit_are_closed_and_counted() {
    let application = greeter().await;
    let ca = Ca::new("root");
    let limits = Limits {
        connections: Limit::new(1),
        ..Limits::default()
    };
    let web = Pod::with(&ca, WEB, settings(), limits);
    let plain = Endpoint::plain(([0, 0, 0, 0], application.addr.port()).into());
    web.knows(service(), target(Protocol::Opaque, forward(plain)));
    let captured = web.capture(service()).await;
    let mut first = Raw::connect(captured).await;
    assert_eq!(first.until("\n").await, "hello\n");
    assert_eq!(Raw::connect(captured).await.rest().await, "");
    assert_eq!(
        web.count("outbound_tcp_errors_total", &["error=\"loadshed\""]),
        1
    );
    assert_eq!(web.context.limits.connections.refused(), 1);
    drop(first);
    eventually("the place is free again", || {
        web.context.limits.connections.used() == 0
    })
    .await;
    assert_eq!(Raw::connect(captured).await.until("\n").await, "hello\n");
}

#[tokio::test]
async fn a_reader_that_stalls_stops_the_sender() {
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let application = Application::serving(move |peer, _log| {
        let counter = Arc::clone(&counter);
        async move {
            let chunk = vec![0; 64 * 1024];
            let mut stream = peer.stream;
            // For ever, as long as somebody takes it.
            while let Ok(count) = tokio::io::AsyncWriteExt::write(&mut stream, &chunk).await {
                counter.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
            }
        }
    })
    .await;
    let mesh = Mesh2::with(
        application.addr,
        Way::Tagged,
        Hint::Opaque,
        Protocol::Opaque,
    )
    .await;
    let mut client = mesh.connect().await;
    client.exactly(1).await;
    stands_still(|| sent.load(std::sync::atomic::Ordering::Relaxed)).await;
}
