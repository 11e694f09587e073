//! Who may come, and what the application learns of it.

use super::rig::*;
use crate::{
    discovery::model::{Authentication, Hint, InboundRoute, MethodAndPath, PathMatch, Protocol},
    tls::testing::{Ca, soon},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn only(identity: &str) -> Authentication {
    Authentication::Identities {
        exact: vec![identity.into()],
        suffixes: Vec::new(),
    }
}

#[tokio::test]
async fn denied_peer_gets_403_and_no_upstream_connection() {
    for (way, hint, authentication, allowed) in [
        (Way::Direct, Hint::None, only(WEB), true),
        (Way::Direct, Hint::None, only(APP), false),
        (Way::Tagged, Hint::H2, only(APP), false),
        (
            Way::Plain,
            Hint::None,
            Authentication::TlsUnauthenticated,
            false,
        ),
        (
            Way::Direct,
            Hint::None,
            Authentication::TlsUnauthenticated,
            true,
        ),
    ] {
        let application = Application::replying(OK, false).await;
        let mesh = Mesh2::new(application.addr, way, hint).await;
        let policy = server(
            Protocol::Detect,
            vec![allow("some", authentication.clone())],
        );
        mesh.app.allows(application.addr.port(), policy);
        let mut client = mesh.connect().await;
        client.send(GET).await;
        let (head, _) = client.response().await;
        let expected = if allowed {
            "HTTP/1.1 200 OK"
        } else {
            "HTTP/1.1 403 Forbidden"
        };
        assert_eq!(
            head.lines().next(),
            Some(expected),
            "{way:?} {authentication:?}"
        );
        assert!(!head.contains("connection: close"), "{head}");
        assert_eq!(application.connections(), usize::from(allowed));
        let denied = mesh
            .app
            .count("inbound_http_authz_deny_total", &["route_name=\"default\""]);
        assert_eq!(denied, u64::from(!allowed));
        let failed = mesh.app.count("inbound_http_errors_total", &[]);
        assert_eq!(failed, 0, "a denial is not an error");
    }
}

#[tokio::test]
async fn a_policy_change_counts_from_the_next_request_on() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    let policy = std::sync::Arc::clone(&mesh.app.answers.inbound.lock()[&application.addr.port()]);
    for (authentication, expected) in [
        (only(WEB), "HTTP/1.1 200 OK"),
        (only(APP), "HTTP/1.1 403 Forbidden"),
        (only(WEB), "HTTP/1.1 200 OK"),
    ] {
        policy.publish(server(
            Protocol::Detect,
            vec![allow("some", authentication)],
        ));
        client.send(GET).await;
        let (head, _) = client.response().await;
        assert_eq!(head.lines().next(), Some(expected));
    }
}

#[tokio::test]
async fn probes_pass_by_their_own_route_and_what_no_route_is_for_gets_404() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Plain, Hint::None).await;
    let route = |name: &str, path: &str, authorizations: Vec<_>| InboundRoute {
        meta: crate::discovery::model::Meta::default_named(name),
        matches: vec![MethodAndPath {
            method: None,
            path: Some(PathMatch::Prefix(path.into())),
        }],
        authorizations: authorizations.into(),
    };
    let mut policy = server(Protocol::Http1, vec![allow("web", only(WEB))]);
    policy.routes = [
        route("probe", "/live", vec![anybody()]),
        route("api", "/api", vec![]),
    ]
    .into();
    mesh.app.allows(application.addr.port(), policy);
    let mut client = mesh.connect().await;
    for (path, expected) in [("/live", "200"), ("/api", "403"), ("/else", "404")] {
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let (head, _) = client.response().await;
        assert_eq!(head.split(' ').nth(1), Some(expected), "{path}");
    }
    assert_eq!(mesh.app.count("inbound_http_route_not_found_total", &[]), 1);
    let probe = ["route_name=\"probe\"", "authz_name=\"anybody\""];
    assert_eq!(mesh.app.count("inbound_http_authz_allow_total", &probe), 1);
}

#[tokio::test]
async fn a_client_id_that_a_client_made_up_never_reaches_the_application() {
    for way in [Way::Plain, Way::Direct] {
        let application = Application::replying(OK, false).await;
        let mesh = Mesh2::new(application.addr, way, Hint::None).await;
        let mut client = mesh.connect().await;
        client
            .send(
                "GET / HTTP/1.1\r\nhost: a\r\nl5d-client-id: admin\r\nl5d-client-id: root\r\n\r\n",
            )
            .await;
        assert_eq!(client.response().await.1, b"ok");
        let head = &application.heads()[0];
        let expected = match way {
            Way::Plain => vec![],
            Way::Direct | Way::Tagged => vec![format!("l5d-client-id: {WEB}")],
        };
        let found: Vec<_> = head
            .lines()
            .filter(|line| line.starts_with("l5d-"))
            .collect();
        assert_eq!(found, expected, "{way:?}");
    }
}

#[tokio::test]
async fn denied_bytes_are_never_read_and_open_ones_are_cut_when_denied_later() {
    let application = Application::serving(|mut peer, _log| async move {
        peer.send("hello\n").await;
        peer.rest().await;
    })
    .await;
    let mesh = Mesh2::with(
        application.addr,
        Way::Tagged,
        Hint::Opaque,
        Protocol::Opaque,
    )
    .await;
    let policy = std::sync::Arc::clone(&mesh.app.answers.inbound.lock()[&application.addr.port()]);
    policy.publish(server(Protocol::Opaque, vec![allow("app", only(APP))]));
    let mut client = mesh.connect().await;
    client.send("secret").await;
    assert_eq!(client.rest().await, "");
    assert_eq!(application.connections(), 0);
    assert_eq!(mesh.app.count("inbound_tcp_authz_deny_total", &[]), 1);

    policy.publish(server(Protocol::Opaque, vec![allow("web", only(WEB))]));
    let mut client = mesh.connect().await;
    assert_eq!(client.until("\n").await, "hello\n");
    policy.publish(server(Protocol::Opaque, vec![anybody()]));
    policy.publish(server(Protocol::Opaque, vec![allow("app", only(APP))]));
    assert_eq!(client.rest().await, "");
    assert_eq!(mesh.app.count("inbound_tcp_authz_terminate_total", &[]), 1);
}

#[tokio::test]
async fn the_proxys_own_port_takes_nothing_without_a_certificate_and_a_header() {
    let application = Application::replying(OK, false).await;
    let ca = Ca::new("root");
    let app = Pod::new(&ca, APP);
    app.allows(
        application.addr.port(),
        server(Protocol::Detect, vec![anybody()]),
    );
    let port = app.open_proxy_port().await;
    // Plaintext.
    let mut client = Raw::connect(port).await;
    client.send(GET).await;
    assert_eq!(client.rest().await, "");
    // Mesh TLS without a transport header.
    let stream = soon(tokio::net::TcpStream::connect(port)).await.unwrap();
    let credentials = ca.credentials(WEB);
    let server = crate::tls::ServerId {
        identity: APP.parse().unwrap(),
        server_name: APP.into(),
    };
    let connected = soon(crate::tls::client::connect(
        stream,
        &credentials,
        &server,
        false,
    ))
    .await;
    if let Ok((mut stream, _)) = connected {
        let mut end = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut end);
        soon(read).await.ok();
        assert_eq!(end, b"");
    }
    assert_eq!(application.connections(), 0);
    eventually("both are counted", || {
        app.count("inbound_tcp_errors_total", &[]) == 2
    })
    .await;
}
