//! Draining a pod, and a worker's life.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use super::rig::*;
use crate::{
    discovery::model::{Endpoint, Hint, Protocol},
    sockets::listeners::Accepted,
    tls::testing::{Ca, soon},
    worker::{Listeners, Workers},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn a_draining_pod_answers_what_comes_and_says_close() {
    let application = Application::replying(OK, false).await;
    let mesh = Mesh2::new(application.addr, Way::Direct, Hint::None).await;
    let mut client = mesh.connect().await;
    client.send(GET).await;
    assert!(!client.response().await.0.contains("close"));
    mesh.web.context.drain.cancel();
    tokio::task::yield_now().await;
    client.send(GET).await;
    let (head, body) = client.response().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(body, b"ok");
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn bytes_go_on_while_their_pod_drains() {
    let application = Application::serving(|mut peer, _log| async move {
        let line = peer.until("\n").await;
        peer.send(line).await;
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
    mesh.web.context.drain.cancel();
    mesh.app.context.drain.cancel();
    tokio::task::yield_now().await;
    client.send("still here\n").await;
    assert_eq!(client.rest().await, "still here\n");
    drop(client);
    mesh.web.context.connections.close();
    soon(mesh.web.context.connections.wait()).await;
}

#[tokio::test]
async fn workers_accept_until_told_otherwise_and_end_when_stopped() {
    let application = Application::replying(OK, false).await;
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let app = Pod::new(&ca, APP);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    // A listener that is not transparent has itself as original destination: inbound, that is
    // the port of the "application" whose policy counts, and the pod's own proxy dials it again.
    let addr = listener.local_addr().unwrap();
    app.allows(addr.port(), server(Protocol::Http1, vec![]));
    let listeners = Listeners {
        outbound: vec![],
        inbound: vec![listener],
    };
    let workers = Workers::start(NonZeroUsize::new(2).unwrap()).unwrap();
    workers.add(&app.context, &listeners).unwrap();
    let mut client = Raw::connect(addr).await;
    client.send(GET).await;
    assert!(client.response().await.0.starts_with("HTTP/1.1 403"));
    drop(client);
    // Offered again, it replaces itself.
    workers.add(&app.context, &listeners).unwrap();
    let mut client = Raw::connect(addr).await;
    client.send(GET).await;
    assert!(client.response().await.0.starts_with("HTTP/1.1 403"));

    workers.stop_accepting();
    workers.remove(&app.context.workload.uid);
    app.context.drain.cancel();
    app.context.connections.close();
    drop(client);
    soon(app.context.connections.wait()).await;
    // Who comes meanwhile waits in the listener.
    let mut waiting = Raw::connect(addr).await;
    waiting.send(GET).await;
    let (stream, _) = soon(async {
        tokio::net::TcpListener::from_std(listeners.inbound[0].try_clone().unwrap())
            .unwrap()
            .accept()
            .await
            .unwrap()
    })
    .await;
    assert!(Raw::new(stream).request().await.is_some());
    tokio::task::spawn_blocking(move || workers.stop())
        .await
        .unwrap();
    drop((application, web));
}

#[tokio::test(start_paused = true)]
async fn idle_connections_go_after_three_sweeps_and_destinations_after_sixty() {
    let application = Application::replying(OK, false).await;
    let ca = Ca::new("root");
    let web = Pod::new(&ca, WEB);
    let plain = Endpoint::plain(([0, 0, 0, 0], application.addr.port()).into());
    web.knows(service(), target(Protocol::Http1, forward(plain)));
    let mut client = Raw::connect(web.capture(service()).await).await;
    client.send(GET).await;
    client.response().await;
    let closed = || web.count("tcp_close_total", &["peer=\"dst\""]);
    for _ in 0..2 {
        web.outbound.sweep();
    }
    assert_eq!(closed(), 0);
    client.send(GET).await;
    client.response().await;
    assert_eq!(application.connections(), 1);
    for _ in 0..3 {
        web.outbound.sweep();
    }
    eventually("the connection is closed", || closed() == 1).await;
    drop(client);
    let watched = Arc::clone(&web.answers.outbound.lock()[&service()]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    for _ in 0..70 {
        web.outbound.sweep();
    }
    assert_eq!(Arc::strong_count(&watched), 2, "the pod has let go of it");
}

#[tokio::test]
async fn a_connection_takes_no_more_memory_than_it_should() {
    let ca = Ca::new("root");
    let pod = Pod::new(&ca, WEB);
    let accepted = || async {
        let (stream, _other) = crate::tls::testing::tcp_pair().await;
        Accepted {
            client: stream.peer_addr().unwrap(),
            original_dst: service(),
            stream,
        }
    };
    let outbound = Arc::clone(&pod.outbound).serve(accepted().await);
    let inbound = Arc::clone(&pod.inbound).serve(accepted().await);
    let sizes = (size_of_val(&outbound), size_of_val(&inbound));
    assert!(sizes.0 <= 1536 && sizes.1 <= 1536, "{sizes:?}");
    // Moved a few times per request.
    let body = size_of::<crate::transport::body::Body>();
    assert!(body <= 256, "{body}");
}
