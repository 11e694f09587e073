//! What clients see when something fails.

use std::{sync::Arc, time::Duration};

use super::rig::*;
use crate::{
    discovery::model::{Destination, Endpoint, EndpointSet, Hint, Protocol},
    policy::limit::{Limit, Limits},
    tls::{ServerId, testing::Ca},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

async fn status(client: &mut Raw) -> String {
    let (head, _) = client.response().await;
    head.split(' ').nth(1).unwrap_or(&head).to_owned()
}

/// An address where nobody listens.
async fn nobody_listens() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn wrong_peer_identity_gets_502_and_no_bytes() {
    let application = Application::replying(OK, false).await;
    for balanced in [false, true] {
        let ca = Ca::new("root");
        let (web, app) = (Pod::new(&ca, WEB), Pod::new(&ca, APP));
        app.allows(
            application.addr.port(),
            server(Protocol::Detect, vec![anybody()]),
        );
        let mut endpoint = endpoint(&app, application.addr, Way::Direct, Hint::None).await;
        // The pod answers to its SNI, and has a certificate that does not say who was expected.
        endpoint.tls = Some(ServerId {
            identity: WEB.parse().unwrap(),
            server_name: APP.into(),
        });
        let destination = match balanced {
            false => forward(endpoint),
            true => Destination::Balance(Arc::new(EndpointSet::fixed("app:80", vec![endpoint]))),
        };
        web.knows(service(), target(Protocol::Detect, destination));
        let mut client = Raw::connect(web.capture(service()).await).await;
        client.send(GET).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
        assert!(head.contains("connection: close\r\n"), "{head}");
        assert!(head.contains("l5d-proxy-error: "), "{head}");
        assert_eq!(client.rest().await, "", "the connection closes");
        assert_eq!(application.connections(), 0);
        assert_eq!(
            web.count("outbound_http_errors_total", &["error=\"i/o\""]),
            1
        );
    }
}

#[tokio::test]
async fn required_identities_are_compared_and_never_sent() {
    let application = Application::replying(OK, false).await;
    for (way, wanted, expected) in [
        (Way::Direct, APP, "200"),
        (Way::Direct, WEB, "502"),
        (Way::Plain, APP, "502"),
    ] {
        let mesh = Mesh2::new(application.addr, way, Hint::None).await;
        let mut client = mesh.connect().await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nl5d-require-id: {wanted}\r\n\r\n"
            ))
            .await;
        assert_eq!(status(&mut client).await, expected, "{way:?} {wanted}");
        let errors = mesh.web.count(
            "outbound_http_errors_total",
            &["error=\"identity required\""],
        );
        assert_eq!(errors, u64::from(expected == "502"));
    }
    assert!(
        application
            .heads()
            .iter()
            .all(|head| !head.contains("require-id"))
    );
}

#[tokio::test]
async fn nothing_ready_for_the_failfast_time_gets_504_and_then_at_once() {
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let set = Arc::new(EndpointSet::fixed("app:80", vec![]));
    let mut slow = target(Protocol::Http1, Destination::Balance(Arc::clone(&set)));
    slow.failfast = Duration::from_millis(300);
    web.knows(service(), slow);
    let captured = web.capture(service()).await;
    let began = tokio::time::Instant::now();
    let mut client = Raw::connect(captured).await;
    client.send(GET).await;
    let (head, _) = client.response().await;
    assert!(
        head.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"),
        "{head}"
    );
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert!(began.elapsed() >= Duration::from_millis(300));
    let began = tokio::time::Instant::now();
    let mut client = Raw::connect(captured).await;
    client.send(GET).await;
    assert_eq!(status(&mut client).await, "504");
    assert!(
        began.elapsed() < Duration::from_millis(200),
        "it waited again"
    );
    assert_eq!(
        web.count("outbound_http_errors_total", &["error=\"failfast\""]),
        2
    );

    let application = Application::replying(OK, false).await;
    let endpoint = Endpoint::plain(([0, 0, 0, 0], application.addr.port()).into());
    set.publish(vec![Arc::new(endpoint)], Some(true));
    let mut client = Raw::connect(captured).await;
    client.send(GET).await;
    assert_eq!(status(&mut client).await, "200");
}

#[tokio::test]
async fn a_request_that_waits_goes_on_when_an_endpoint_comes() {
    let application = Application::replying(OK, false).await;
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let set = Arc::new(EndpointSet::fixed("app:80", vec![]));
    let mut patient = target(Protocol::Http1, Destination::Balance(Arc::clone(&set)));
    patient.failfast = Duration::from_secs(5);
    web.knows(service(), patient);
    let mut client = Raw::connect(web.capture(service()).await).await;
    client.send(GET).await;
    eventually("the request is there", || {
        web.context.limits.requests.used() == 1
    })
    .await;
    let endpoint = Endpoint::plain(([0, 0, 0, 0], application.addr.port()).into());
    set.publish(vec![Arc::new(endpoint)], Some(true));
    assert_eq!(status(&mut client).await, "200");
}

#[tokio::test]
async fn an_application_that_is_not_there_or_breaks_off_is_502() {
    let refused = nobody_listens().await;
    let breaking = Application::serving(|mut peer, _log| async move {
        peer.request().await;
        peer.stream.set_zero_linger().unwrap();
    })
    .await;
    for (addr, hint) in [
        (refused, Hint::None),
        (breaking.addr, Hint::None),
        (breaking.addr, Hint::H2),
    ] {
        let mesh = Mesh2::new(addr, Way::Direct, hint).await;
        let mut client = mesh.connect().await;
        client.send(GET).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{hint:?}: {head}");
        // The far proxy says that its error is fatal, and that is for this one to know.
        assert!(head.contains("connection: close\r\n"), "{hint:?}: {head}");
        assert!(!head.contains("l5d-"), "{hint:?}: {head}");
        let error = mesh
            .app
            .count("inbound_http_errors_total", &["error=\"i/o\""]);
        assert_eq!(error, 1, "{hint:?}");
        let failure = [
            "direction=\"inbound\"",
            "classification=\"failure\"",
            "error=\"unclassified\"",
        ];
        assert_eq!(mesh.app.count("response_total", &failure), 1, "{hint:?}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_breaks_off_for_the_client_and_its_connection_is_not_reused() {
    let application = Application::serving(|mut peer, _log| async move {
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await;
    })
    .await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    for _ in 0..2 {
        let mut client = mesh.connect().await;
        client.send(GET).await;
        let got = client.rest().await;
        assert!(got.ends_with("\r\n\r\nhalf"), "{got}");
    }
    assert_eq!(application.connections(), 2);
    let failure = [
        "classification=\"failure\"",
        "status_code=\"200\"",
        "error=\"unclassified\"",
    ];
    assert_eq!(mesh.app.count("response_total", &failure), 2);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_upstream_connection_with_it() {
    let application = Application::serving(|mut peer, log| async move {
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await;
        peer.rest().await;
        log.lock().heads.push("gone".to_owned());
    })
    .await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    client.send(GET).await;
    assert!(client.until("half").await.ends_with("half"));
    drop(client);
    eventually("the application sees it", || {
        application.heads() == ["gone"]
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_that_the_application_has_closed_costs_no_request() {
    let application = Application::replying(OK, true).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    for _ in 0..50 {
        client.send(GET).await;
        assert_eq!(status(&mut client).await, "200");
    }
    assert_eq!(application.connections(), 50);
}

#[tokio::test]
async fn requests_over_the_pods_limit_get_503() {
    let ca = Ca::new("root");
    let limits = Limits {
        requests: Limit::new(0),
        ..Limits::default()
    };
    let web = Pod::with(&ca, WEB, settings(), limits);
    let plain = Endpoint::plain(([0, 0, 0, 0], 9).into());
    web.knows(service(), target(Protocol::Http1, forward(plain)));
    let mut client = Raw::connect(web.capture(service()).await).await;
    client.send(GET).await;
    assert_eq!(status(&mut client).await, "503");
    assert_eq!(
        web.count("outbound_http_errors_total", &["error=\"loadshed\""]),
        1
    );
}

#[tokio::test]
async fn forbidden_destinations_get_403_or_are_closed() {
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let forbidden = Destination::Forbidden("traffic not allowed");
    web.knows(service(), target(Protocol::Detect, forbidden));
    let captured = web.capture(service()).await;
    let mut client = Raw::connect(captured).await;
    client.send(GET).await;
    assert_eq!(status(&mut client).await, "403");
    let mut client = Raw::connect(captured).await;
    client.send("this is not http at all\n").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn messages_that_two_servers_could_read_differently_are_refused() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::with(application.addr, Way::Direct, Hint::None, Protocol::Http1).await;
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400"),
        ("CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("garbage\r\n\r\n", "400"),
    ] {
        let mut client = mesh.connect().await;
        client.send(request).await;
        assert_eq!(status(&mut client).await, expected, "{request}");
    }
    assert_eq!(application.connections(), 0);
}

#[tokio::test]
async fn a_length_beside_chunks_is_dropped() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::with(application.addr, Way::Plain, Hint::None, Protocol::Http1).await;
    let mut client = mesh.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
        .await;
    status(&mut client).await;
    let heads = application.heads();
    assert!(
        heads.iter().all(|head| !head.contains("content-length")),
        "{heads:?}"
    );
}

#[tokio::test]
async fn a_megabyte_of_header_gets_431_and_harms_nobody_else() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    client
        .send(format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx: {}",
            "y".repeat(300_000)
        ))
        .await;
    for _ in 0..4 {
        client.send("z".repeat(200_000)).await;
    }
    assert_eq!(status(&mut client).await, "431");
    let mut client = mesh.connect().await;
    client
        .send(format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
            "y".repeat(50_000)
        ))
        .await;
    assert_eq!(status(&mut client).await, "200");
    assert_eq!(application.heads().len(), 1);
}

#[tokio::test]
async fn unmeshed_clients_learn_nothing_of_the_proxys_errors() {
    let refused = nobody_listens().await;
    let ca = Ca::new("root");
    let app = Pod::new(&ca, APP);
    app.allows(refused.port(), server(Protocol::Detect, vec![anybody()]));
    let mut client = Raw::connect(app.steer(refused).await).await;
    client.send(GET).await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(!head.contains("l5d-"), "{head}");
}

#[tokio::test]
async fn requests_that_wait_go_on_when_an_endpoint_that_failed_is_back() {
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let addr = nobody_listens().await;
    let endpoint = Endpoint::plain(([0, 0, 0, 0], addr.port()).into());
    let set = Destination::Balance(Arc::new(EndpointSet::fixed("app:80", vec![endpoint])));
    let mut patient = target(Protocol::Http1, set);
    patient.failfast = Duration::from_secs(8);
    web.knows(service(), patient);
    let captured = web.capture(service()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Raw::connect(captured).await;
        client.send(GET).await;
        clients.push(client);
    }
    eventually("all wait", || web.context.limits.requests.used() == 5).await;
    let application = Application::replying_at(addr, OK).await;
    for client in &mut clients {
        assert_eq!(status(client).await, "200");
    }
    drop(application);
}

#[tokio::test]
async fn an_http_reader_that_stalls_stops_the_sender() {
    for hint in [Hint::None, Hint::H2] {
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let application = Application::serving(move |mut peer, _log| {
            let counter = Arc::clone(&counter);
            async move {
                peer.request().await;
                peer.send("HTTP/1.1 200 OK\r\n\r\n").await;
                let chunk = vec![b'x'; 64 * 1024];
                let mut stream = peer.stream;
                while let Ok(count) = tokio::io::AsyncWriteExt::write(&mut stream, &chunk).await {
                    counter.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
                }
            }
        })
        .await;
        let mesh = Mesh2::new(application.addr, Way::Tagged, hint).await;
        let mut client = mesh.connect().await;
        client.send(GET).await;
        client.until("xx").await;
        stands_still(|| sent.load(std::sync::atomic::Ordering::Relaxed)).await;
    }
}
