//! Peers that are not who they should be: wrong name, expired, strangers, none at all.

use std::{io::Read as _, net::TcpListener, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use weft_tests::{
    Pod, PodSpec, World, apps,
    ca::{Ca, Leaf, Validity},
    eventually,
    fixture::Pair,
    manifest::ServiceSpec,
    mesh_tls, test_name,
};

/// A mesh whose authority is the test's.
fn mesh(test: &str) -> Result<(Arc<Ca>, Pair)> {
    let ca = Arc::new(Ca::create()?);
    let pair = Pair::build_in(World::builder(test).authority(&ca))?;
    pair.works_soon()?;
    Ok((ca, pair))
}

/// A pod that the mesh believes to be meshed, where the test itself answers.
fn impostor(pair: &Pair) -> Result<(Pod, TcpListener, String)> {
    let spec = PodSpec::new("bank", "n2").port(8080).meshed();
    let pod = pair.world.pod_without_cni(spec)?;
    let ips = pair.world.service(&ServiceSpec::new("bank", 80, 8080))?;
    let address = pod.at(8080);
    let listener = pod.netns().enter(|| TcpListener::bind(address))??;
    let url = format!("http://{}/secret-request", ips[0]);
    Ok((pod, listener, url))
}

/// Asks through the mesh while `serve` answers; what the client got and what the server received.
fn ask(pair: &Pair, url: &str, serve: impl FnOnce() -> Vec<u8> + Send) -> (Option<u16>, Vec<u8>) {
    std::thread::scope(|scope| {
        let server = scope.spawn(serve);
        let answer = apps::curl(&pair.client, url, &["--max-time", "15"]);
        (
            answer.ok().map(|(status, _)| status),
            server.join().unwrap_or_default(),
        )
    })
}

#[test]
fn a_server_with_the_wrong_certificate_gets_no_request() {
    let (ca, pair) = mesh(test_name!()).unwrap();
    let (pod, listener, url) = impostor(&pair).unwrap();
    let other_ca = Ca::create().unwrap();
    let right = pod.identity();
    eventually("the right certificate is accepted", || {
        let leaf = ca.leaf(&right, Validity::Valid)?;
        let (_, received) = ask(&pair, &url, || {
            mesh_tls::serve_once(&listener, leaf).unwrap_or_default()
        });
        ensure!(received.starts_with(b"GET /secret-request"), "{received:?}");
        Ok(())
    })
    .unwrap();
    let evil = "evil.shop.serviceaccount.identity.linkerd.cluster.local";
    for (case, leaf) in [
        ("another's name", ca.leaf(evil, Validity::Valid)),
        ("expired", ca.leaf(&right, Validity::Expired)),
        ("not yet valid", ca.leaf(&right, Validity::Future)),
        (
            "of an unknown authority",
            other_ca.leaf(&right, Validity::Valid),
        ),
    ] {
        let leaf: Leaf = leaf.unwrap();
        let (status, received) = ask(&pair, &url, || {
            mesh_tls::serve_once(&listener, leaf).expect("the proxy tries the server")
        });
        assert!(
            status.is_none_or(|status| status >= 500),
            "{case}: {status:?}"
        );
        assert!(received.is_empty(), "{case}: the server got {received:?}");
    }
}

#[test]
fn a_server_without_tls_gets_no_request_in_clear() {
    let (_ca, pair) = mesh(test_name!()).unwrap();
    let (_pod, listener, url) = impostor(&pair).unwrap();
    let listen = || {
        let mut bytes = Vec::new();
        if let Ok(mut stream) = mesh_tls::accept(&listener) {
            stream.set_read_timeout(Some(Duration::from_secs(3))).ok();
            stream.read_to_end(&mut bytes).ok();
        }
        bytes
    };
    let (status, received) = eventually("the proxy tries the server", || {
        let (status, received) = ask(&pair, &url, listen);
        ensure!(!received.is_empty(), "it sent nothing");
        Ok((status, received))
    })
    .unwrap();
    assert!(status.is_none_or(|status| status >= 500), "{status:?}");
    assert_eq!(
        received.first(),
        Some(&0x16),
        "not a TLS hello: {received:?}"
    );
    let text = String::from_utf8_lossy(&received);
    assert!(!text.contains("secret-request"), "{text}");
}

#[test]
fn clients_are_who_their_certificate_says_or_nobody() {
    let (ca, pair) = mesh(test_name!()).unwrap();
    let outsider = pair.world.pod(PodSpec::new("outsider", "n1")).unwrap();
    let server = pair.server.at(apps::NGINX);
    let name = pair.server.identity();
    let friend = "friend.shop.serviceaccount.identity.linkerd.cluster.local";
    let request = b"GET /client-id HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    let call = |leaf: Leaf| {
        let exchange = || {
            let mut stream = mesh_tls::connect(server, &name, leaf)?;
            mesh_tls::exchange(&mut stream, request)
        };
        outsider.netns().enter(exchange).unwrap()
    };
    let answer = call(ca.leaf(friend, Validity::Valid).unwrap()).unwrap();
    assert!(
        answer.contains("200 OK") && answer.contains(friend),
        "{answer}"
    );
    let stranger = Ca::create().unwrap();
    for (case, leaf) in [
        ("expired", ca.leaf(friend, Validity::Expired)),
        ("not yet valid", ca.leaf(friend, Validity::Future)),
        (
            "of an unknown authority",
            stranger.leaf(friend, Validity::Valid),
        ),
    ] {
        // TLS 1.3 tells a client of its refusal with the first read.
        let answer = call(leaf.unwrap());
        let refused = answer
            .as_ref()
            .map_or(true, |answer| !answer.contains("200 OK"));
        assert!(refused, "{case}: {answer:?}");
    }
    pair.works().unwrap();
}
