//! HTTP/1 through both sides.

use super::rig::*;
use crate::{
    discovery::model::{Endpoint, Hint, Protocol},
    tls::ServerId,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn requests_pass_over_each_way_on_one_connection_and_are_counted() {
    for (way, hint) in [
        (Way::Plain, Hint::None),
        (Way::Direct, Hint::None),
        (Way::Tagged, Hint::None),
        (Way::Direct, Hint::H2),
        (Way::Tagged, Hint::H2),
    ] {
        let application = Application::replying(OK, false).await;
        let mesh = Mesh2::new(application.addr, way, hint).await;
        let mut client = mesh.connect().await;
        for _ in 0..3 {
            client
                .send("GET /a?b=c HTTP/1.1\r\nhost: app\r\nx-y: z\r\n\r\n")
                .await;
            let (head, body) = client.response().await;
            assert!(
                head.starts_with("HTTP/1.1 200 OK\r\n"),
                "{way:?} {hint:?}: {head}"
            );
            assert!(!head.contains("l5d-"), "{way:?} {hint:?}: {head}");
            assert_eq!(body, b"ok", "{way:?} {hint:?}");
        }
        let heads = application.heads();
        let client_id = match way {
            Way::Plain => String::new(),
            Way::Direct | Way::Tagged => format!("l5d-client-id: {WEB}\r\n"),
        };
        let expected = format!("GET /a?b=c HTTP/1.1\r\nhost: app\r\nx-y: z\r\n{client_id}\r\n");
        assert_eq!(heads, vec![expected; 3], "{way:?} {hint:?}");
        assert_eq!(application.connections(), 1, "{way:?} {hint:?}");

        let tls = match way {
            Way::Plain => {
                "tls=\"no_identity\",no_tls_reason=\"not_provided_by_service_discovery\"".to_owned()
            }
            Way::Direct | Way::Tagged => format!("tls=\"true\",server_id=\"{APP}\""),
        };
        let labels = [
            "direction=\"outbound\"",
            "authority=\"app.shop.svc.cluster.local:80\"",
            &tls,
        ];
        let (web, app) = (&mesh.web, &mesh.app);
        assert_eq!(web.count("request_total", &labels), 3, "{way:?} {hint:?}");
        let success = ["status_code=\"200\"", "classification=\"success\""];
        eventually("responses are counted", || {
            web.count("response_total", &success) == 3 && app.count("response_total", &success) == 3
        })
        .await;
        let port = format!("target_port=\"{}\"", application.addr.port());
        assert_eq!(
            app.count("request_total", &["direction=\"inbound\"", &port]),
            3
        );
        assert_eq!(
            app.count(
                "inbound_http_authz_allow_total",
                &["authz_name=\"anybody\""]
            ),
            3
        );
        let dst = ["direction=\"outbound\"", "peer=\"dst\"", &tls];
        assert_eq!(web.count("tcp_open_total", &dst), 1, "{way:?} {hint:?}");
        assert!(web.count("tcp_read_bytes_total", &["peer=\"src\""]) > 100);
    }
}

#[tokio::test]
async fn responses_of_every_framing_arrive_as_they_were_and_leave_a_clean_connection() {
    const NO_BODY: &str = "";
    for (request, reply, once, expected_head, expected_body) in [
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            false,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nto the end",
            true,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "A\r\nto the end\r\n0\r\n\r\n",
        ),
        (
            "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
            false,
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
            NO_BODY,
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            false,
            "HTTP/1.1 204 No Content\r\n\r\n",
            NO_BODY,
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: \"x\"\r\n\r\n",
            false,
            // hyper leaves the length out of a 304, as RFC 9110 section 15.4.5 permits.
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
            NO_BODY,
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 5\r\n\r\n",
            false,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n",
            "1\r\na\r\n0\r\nx-sum: 5\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\ndate: x\r\n\r\nok",
            true,
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndate: x\r\n\r\n",
            "ok",
        ),
    ] {
        let application = Application::replying(reply, once).await;
        let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
        let mut client = mesh.connect().await;
        for _ in 0..2 {
            client.send(request).await;
            assert_eq!(client.until("\r\n\r\n").await, expected_head, "{reply}");
            let body = client.exactly(expected_body.len()).await;
            assert_eq!(String::from_utf8(body).unwrap(), expected_body, "{reply}");
        }
        let expected = if once { 2 } else { 1 };
        assert_eq!(application.connections(), expected, "{reply}");
    }
}

#[tokio::test]
async fn responses_that_were_carried_in_http2_keep_their_framing_too() {
    for (request, reply, expected) in [
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ),
        (
            "GET / HTTP/1.0\r\n\r\n",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ),
    ] {
        let application = Application::replying(reply, false).await;
        let mesh = Mesh2::new(application.addr, Way::Tagged, Hint::H2).await;
        let mut client = mesh.connect().await;
        client.send(request).await;
        let got = client.exactly(expected.len()).await;
        assert_eq!(String::from_utf8(got).unwrap(), expected, "{request}");
    }
}

#[tokio::test]
async fn request_bodies_pass_with_length_and_chunked() {
    for hint in [Hint::None, Hint::H2] {
        let application = Application::replying(OK, false).await;
        let mesh = Mesh2::new(application.addr, Way::Direct, hint).await;
        let mut client = mesh.connect().await;
        let big = "x".repeat(300_000);
        client
            .send(format!(
                "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{big}",
                big.len()
            ))
            .await;
        assert_eq!(client.response().await.1, b"ok");
        client
            .send("POST /b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await;
        assert_eq!(client.response().await.1, b"ok", "{hint:?}");
        let log = application.log.lock();
        assert_eq!(log.bodies[0], big.as_bytes());
        assert_eq!(
            log.bodies[1], b"3\r\nabc\r\n0\r\n\r\n",
            "{hint:?}: {}",
            log.heads[1]
        );
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        .await;
    assert_eq!(
        client.until("\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.send("hi").await;
    assert_eq!(client.response().await.1, b"ok");
    assert_eq!(application.log.lock().bodies, [b"hi"]);
}

#[tokio::test]
async fn absolute_form_stays_absolute() {
    for hint in [Hint::None, Hint::H2] {
        let application = Application::replying(OK, false).await;
        let mesh = Mesh2::new(application.addr, Way::Tagged, hint).await;
        let mut client = mesh.connect().await;
        client
            .send("GET http://app:81/x HTTP/1.1\r\nhost: app:81\r\n\r\n")
            .await;
        assert_eq!(client.response().await.1, b"ok");
        let heads = application.heads();
        assert!(
            heads[0].starts_with("GET http://app:81/x HTTP/1.1\r\nhost: app:81\r\n"),
            "{hint:?}: {heads:?}"
        );
    }
}

#[tokio::test]
async fn http_1_0_and_requests_without_host_have_a_connection_of_their_own() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = mesh.connect().await;
        client.send(request).await;
        let (head, body) = client.response().await;
        assert!(head.contains(" 200 OK\r\n"), "{head}");
        assert_eq!(body, b"ok");
    }
    assert_eq!(application.connections(), 3);
    assert!(application.heads()[0].starts_with("GET / HTTP/1.0\r\n"));
}

#[tokio::test]
async fn websocket_and_connect_become_byte_pipes() {
    for (request, reply, hint) in [
        (
            "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            Hint::None,
        ),
        (
            "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            Hint::H2,
        ),
        (
            "CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            Hint::None,
        ),
    ] {
        let application = Application::serving(move |mut peer, log| async move {
            let head = peer.until("\r\n\r\n").await;
            log.lock().heads.push(head);
            peer.send(reply).await;
            peer.send("server first\n").await;
            let said = peer.until("\n").await;
            peer.send(format!("you said {said}")).await;
        })
        .await;
        let mesh = Mesh2::new(application.addr, Way::Tagged, hint).await;
        let mut client = mesh.connect().await;
        client.send(request).await;
        let head = client.until("\r\n\r\n").await;
        assert_eq!(head.lines().next(), reply.lines().next(), "{head}");
        assert_eq!(client.until("\n").await, "server first\n");
        client.send("hello\n").await;
        assert_eq!(client.rest().await, "you said hello\n");
        let first = request.lines().next();
        assert_eq!(application.heads()[0].lines().next(), first);
        assert!(mesh.app.count("response_total", &[]) == 1);
    }
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_response() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    for _ in 0..2 {
        client
            .send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
            .await;
        assert_eq!(client.response().await.1, b"ok");
    }
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n\r\n")
        .await;
    assert_eq!(client.response().await.1, b"ok");
    let last = application.heads().pop().unwrap();
    assert!(
        !last.contains("h2c") && !last.contains("http2-settings"),
        "{last}"
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let application = Application::serving(|mut peer, _log| async move {
        while let Some((head, _)) = peer.request().await {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
                path.len()
            ))
            .await;
        }
    })
    .await;
    let mesh = Mesh2::with(application.addr, Way::Direct, Hint::None, Protocol::Http1).await;
    let mut client = mesh.connect().await;
    client
        .send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.response().await.1, path.as_bytes());
    }
}

#[tokio::test]
async fn many_clients_at_once_lose_nothing_and_share_connections() {
    for (hint, most) in [(Hint::None, 32), (Hint::H2, 1)] {
        let application = Application::serving(|mut peer, _log| async move {
            while let Some((head, _)) = peer.request().await {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let length = path.len();
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}"
                ))
                .await;
            }
        })
        .await;
        let mesh = Mesh2::new(application.addr, Way::Tagged, hint).await;
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..32 {
            let captured = mesh.captured;
            clients.spawn(async move {
                let mut raw = Raw::connect(captured).await;
                for request in 0..20 {
                    let path = format!("/{client}/{request}");
                    raw.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
                        .await;
                    assert_eq!(raw.response().await.1, path.as_bytes());
                }
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        let dst = ["direction=\"outbound\"", "peer=\"dst\""];
        let opened = mesh.web.count("tcp_open_total", &dst);
        assert!((1..=most).contains(&opened), "{hint:?}: {opened}");
        let success = ["classification=\"success\""];
        eventually("all are counted", || {
            mesh.web.count("response_total", &success) == 640
                && mesh.app.count("response_total", &success) == 640
        })
        .await;
    }
}

#[tokio::test]
async fn the_pods_own_address_is_reached_plainly_whatever_discovery_says() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Tagged, Hint::H2).await;
    let own = Endpoint {
        addr: application.addr,
        tls: Some(ServerId {
            identity: APP.parse().unwrap(),
            server_name: APP.into(),
        }),
        hint: Hint::H2,
        transport_port: Some(4143),
        ..Endpoint::plain(application.addr)
    };
    mesh.web
        .knows(service(), target(Protocol::Detect, forward(own)));
    let mut client = mesh.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.response().await.1, b"ok");
    assert_eq!(application.heads(), ["GET / HTTP/1.1\r\nhost: a\r\n\r\n"]);
    let loopback = [
        "peer=\"dst\"",
        "no_tls_reason=\"loopback\"",
        "direction=\"outbound\"",
    ];
    assert_eq!(mesh.web.count("tcp_open_total", &loopback), 1);
}

#[tokio::test]
async fn an_authority_override_replaces_the_host() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Plain, Hint::None).await;
    let gateway = Endpoint {
        authority_override: Some("app.other:81".into()),
        ..Endpoint::plain(([0, 0, 0, 0], application.addr.port()).into())
    };
    mesh.web
        .knows(service(), target(Protocol::Detect, forward(gateway)));
    let mut client = mesh.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.response().await.1, b"ok");
    assert_eq!(
        application.heads(),
        ["GET / HTTP/1.1\r\nhost: app.other:81\r\n\r\n"]
    );
}
