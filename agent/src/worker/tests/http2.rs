//! HTTP/2 and gRPC through both sides.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::once};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{
    BodyExt, Empty, Full, StreamBody,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_util::task::TaskTracker;

use super::rig::*;
use crate::{
    discovery::model::{Hint, Protocol},
    tls::testing::soon,
    transport::exec::Exec,
};

type AnyBody = BoxBody<Bytes, Infallible>;

/// An HTTP/2 application.
struct Application2 {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Application2 {
    async fn serving<F>(serve: fn(Request<Incoming>) -> F) -> Self
    where
        F: Future<Output = Result<Response<AnyBody>, hyper::Error>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    http2::Builder::new(Exec::new(TaskTracker::new()))
                        .serve_connection(TokioIo::new(stream), service_fn(serve))
                        .await
                        .ok();
                });
            }
        });
        Self {
            addr,
            _tasks: tasks,
        }
    }
}

async fn connect(addr: SocketAddr, tasks: &mut JoinSet<()>) -> SendRequest<AnyBody> {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(Exec::new(TaskTracker::new()), TokioIo::new(stream))
            .await
            .unwrap();
    tasks.spawn(async move {
        connection.await.ok();
    });
    client
}

fn empty() -> AnyBody {
    Empty::new().boxed()
}

fn request(path: &str, body: AnyBody) -> Request<AnyBody> {
    Request::post(format!("http://app{path}"))
        .version(Version::HTTP_2)
        .body(body)
        .unwrap()
}

/// A gRPC response: one message and a status in the trailers.
fn grpc(status: &'static str) -> Response<AnyBody> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    let frames = [
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"message"))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(tokio_stream::iter(frames));
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(BodyExt::boxed(body)).unwrap()
}

#[tokio::test]
async fn http2_passes_on_one_connection_with_bodies_both_ways() {
    for way in [Way::Plain, Way::Direct, Way::Tagged] {
        let application = Application2::serving(|request| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            let id = request.headers().get("l5d-client-id").cloned();
            let body = request.into_body().collect().await?.to_bytes();
            let mut response = Response::new(Full::new(body).boxed());
            if let Some(id) = id {
                response.headers_mut().insert("x-client", id);
            }
            Ok(response)
        })
        .await;
        let mesh = Mesh2::new(application.addr, way, Hint::None).await;
        let mut tasks = JoinSet::new();
        let client = connect(mesh.captured, &mut tasks).await;
        let mut calls = JoinSet::new();
        for n in 0..20 {
            let mut client = client.clone();
            calls.spawn(async move {
                let sent = Bytes::from(vec![n; 100_000]);
                let body = Full::new(sent.clone()).boxed();
                let response = client.send_request(request("/echo", body)).await.unwrap();
                assert_eq!(response.status(), 200);
                let id = response.headers().get("x-client").cloned();
                assert_eq!(
                    response.into_body().collect().await.unwrap().to_bytes(),
                    sent
                );
                id
            });
        }
        while let Some(id) = soon(calls.join_next()).await {
            let expected = (way != Way::Plain).then(|| WEB.parse().unwrap());
            assert_eq!(id.unwrap(), expected, "{way:?}");
        }
        let dst = ["direction=\"outbound\"", "peer=\"dst\""];
        assert_eq!(mesh.web.count("tcp_open_total", &dst), 1, "{way:?}");
        assert_eq!(mesh.app.count("request_total", &[]), 20);
    }
}

#[tokio::test]
async fn grpc_statuses_of_trailers_are_counted_on_both_sides() {
    let application = Application2::serving(|request| async move {
        Ok(match request.uri().path() {
            "/ok" => grpc("0"),
            _ => grpc("14"),
        })
    })
    .await;
    let mesh = Mesh2::with(application.addr, Way::Direct, Hint::H2, Protocol::Grpc).await;
    let mut tasks = JoinSet::new();
    let mut client = connect(mesh.captured, &mut tasks).await;
    for (path, status) in [("/ok", "0"), ("/no", "14"), ("/ok", "0")] {
        let mut request = request(path, empty());
        let grpc = "application/grpc".parse().unwrap();
        request.headers_mut().insert("content-type", grpc);
        request
            .headers_mut()
            .insert("te", "trailers".parse().unwrap());
        let response = soon(client.send_request(request)).await.unwrap();
        let body = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], status);
        assert_eq!(body.to_bytes(), "message");
    }
    for pod in [&mesh.web, &mesh.app] {
        let ok = ["classification=\"success\"", "grpc_status=\"0\""];
        let no = ["classification=\"failure\"", "grpc_status=\"14\""];
        eventually("statuses are counted", || {
            pod.count("response_total", &ok) == 2 && pod.count("response_total", &no) == 1
        })
        .await;
    }
}

/// A body that breaks when it is told to, which resets the stream.
fn breaking(when: Arc<Notify>) -> UnsyncBoxBody<Bytes, io::Error> {
    let half = async { Ok(Frame::data(Bytes::from_static(b"half"))) };
    let broken = async move {
        when.notified().await;
        Err(io::ErrorKind::Other.into())
    };
    BodyExt::boxed_unsync(StreamBody::new(once(half).chain(once(broken))))
}

#[tokio::test]
async fn responses_that_break_off_end_in_a_reset_or_for_grpc_in_a_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let told = Arc::new(Notify::new());
    let when = Arc::clone(&told);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = |_request| {
            let body = breaking(Arc::clone(&when));
            async { Ok::<_, Infallible>(Response::new(body)) }
        };
        http2::Builder::new(Exec::new(TaskTracker::new()))
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await
            .ok();
    });
    let mesh = Mesh2::with(addr, Way::Direct, Hint::H2, Protocol::Http2).await;
    let mut client = connect(mesh.captured, &mut tasks).await;
    for kind in ["text/plain", "application/grpc"] {
        let mut request = request("/", empty());
        request
            .headers_mut()
            .insert("content-type", kind.parse().unwrap());
        let response = soon(client.send_request(request)).await.unwrap();
        let mut body = response.into_body();
        soon(body.frame()).await.unwrap().unwrap();
        told.notify_one();
        let body = soon(body.collect()).await;
        match kind {
            "text/plain" => assert!(body.is_err(), "the stream is reset"),
            _ => assert_eq!(body.unwrap().trailers().unwrap()["grpc-status"], "14"),
        }
    }
    let failure = ["classification=\"failure\"", "error=\"h2(INTERNAL_ERROR)\""];
    eventually("both are failures", || {
        mesh.app.count("response_total", &failure) == 2
    })
    .await;
}

#[tokio::test]
async fn grpc_clients_get_a_status_when_nobody_answers() {
    let unused = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mesh = Mesh2::with(unused, Way::Direct, Hint::H2, Protocol::Grpc).await;
    let mut tasks = JoinSet::new();
    let mut client = connect(mesh.captured, &mut tasks).await;
    let mut request = request("/", empty());
    let grpc = "application/grpc".parse().unwrap();
    request.headers_mut().insert("content-type", grpc);
    let response = soon(client.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert!(!response.headers().contains_key("l5d-proxy-error"));
}

#[tokio::test]
async fn a_header_list_that_is_too_long_gets_431() {
    let application = Application2::serving(|_request| async { Ok(Response::new(empty())) }).await;
    let mesh = Mesh2::with(application.addr, Way::Direct, Hint::H2, Protocol::Http2).await;
    let mut tasks = JoinSet::new();
    let mut client = connect(mesh.captured, &mut tasks).await;
    let mut long = request("/", empty());
    long.headers_mut()
        .insert("x", "y".repeat(100_000).parse().unwrap());
    let answer = soon(client.send_request(long)).await;
    let refused = answer.map_or(true, |answer| answer.status() == 431);
    assert!(refused, "100 kB of header are not passed on");
    let mut client = connect(mesh.captured, &mut tasks).await;
    let response = soon(client.send_request(request("/", empty())))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}
