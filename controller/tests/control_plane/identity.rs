//! Certificates over the wire, and the controller's own.

use std::{fs, sync::Arc};

use linkerd2_proxy_api::identity::CertifyRequest;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tonic::Code;

use crate::world::{ENABLED, SERVER_NAME, World, namespace, pod, within};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const DB: &str = "db.shop.serviceaccount.identity.linkerd.cluster.local";

fn csr(name: &str) -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn request(identity: &str, token: &str, csr: Vec<u8>) -> CertifyRequest {
    CertifyRequest {
        identity: identity.to_owned(),
        token: token.as_bytes().to_vec(),
        certificate_signing_request: csr,
    }
}

fn roots(world: &World) -> RootCertStore {
    let pem = fs::read(world.state("trust-anchors.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    roots
}

async fn world() -> World {
    let finished = pod("old", "n1", "10.1.0.8")
        .replace("serviceAccountName: web", "serviceAccountName: old")
        .replace("Running", "Failed");
    let db =
        pod("db", "n2", "10.1.0.2").replace("serviceAccountName: web", "serviceAccountName: db");
    World::new(&[
        ("shop.yaml", &namespace("shop", ENABLED)),
        (
            "pods.yaml",
            &format!("{}{db}{finished}", pod("a", "n1", "10.1.0.1")),
        ),
    ])
    .await
}

#[tokio::test]
async fn a_certificate_verifies_against_the_trust_anchor() {
    let world = world().await;
    let n1 = world.token("n1");
    let mut client = world.identity().await;
    let answer = client
        .certify(request(WEB, &n1, csr(WEB)))
        .await
        .unwrap()
        .into_inner();
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots(&world)))
        .build()
        .unwrap();
    let chain: Vec<_> = answer
        .intermediate_certificates
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    verifier
        .verify_server_cert(
            &CertificateDer::from(answer.leaf_certificate),
            &chain,
            &ServerName::try_from(WEB).unwrap(),
            &[],
            UnixTime::now(),
        )
        .unwrap();
    assert!(answer.valid_until.is_some());
    let metrics = world.admin("/metrics").await;
    for line in [
        "weft_certificates_issued_total 1",
        "weft_controller_requests_total{method=\"Identity.Certify\",code=\"ok\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_node_gets_certificates_for_what_runs_on_it_and_nothing_else() {
    let world = world().await;
    let mut client = world.identity().await;
    let (n1, n2) = (world.token("n1"), world.token("n2"));
    let old = "old.shop.serviceaccount.identity.linkerd.cluster.local";
    for (identity, token, csr, code, message) in [
        (DB, &*n1, csr(DB), Code::PermissionDenied, DB),
        (WEB, &*n2, csr(WEB), Code::PermissionDenied, "node n2"),
        (old, &*n1, csr(old), Code::PermissionDenied, old),
        (
            WEB,
            &*n1,
            csr(DB),
            Code::FailedPrecondition,
            "is not the identity",
        ),
        (
            WEB,
            &*n1,
            csr("evil.example"),
            Code::FailedPrecondition,
            "evil.example",
        ),
        (
            WEB,
            &*n1,
            b"garbage".to_vec(),
            Code::InvalidArgument,
            "cannot be parsed",
        ),
        (
            WEB,
            &*n1,
            Vec::new(),
            Code::InvalidArgument,
            "cannot be parsed",
        ),
        (WEB, "", csr(WEB), Code::InvalidArgument, "token"),
        ("", &*n1, csr(WEB), Code::InvalidArgument, "identity"),
        (
            "spiffe://td/x",
            &*n1,
            csr(WEB),
            Code::InvalidArgument,
            "SPIFFE",
        ),
        (
            WEB,
            "garbage",
            csr(WEB),
            Code::FailedPrecondition,
            "join token",
        ),
        (
            WEB,
            "weft-join-v1:n1:x",
            csr(WEB),
            Code::FailedPrecondition,
            "node n1",
        ),
    ] {
        let status = client
            .certify(request(identity, token, csr))
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{identity} {token}: {status:?}");
        assert!(status.message().contains(message), "{status:?}");
    }
    let metrics = world.admin("/metrics").await;
    for line in [
        "weft_certificates_issued_total 0",
        "weft_certificates_refused_total{reason=\"not_on_node\"} 3",
        "weft_certificates_refused_total{reason=\"csr\"} 2",
        "weft_certificates_refused_total{reason=\"token\"} 2",
        "weft_certificates_refused_total{reason=\"malformed\"} 5",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_proxy_that_offers_no_alpn_is_served() {
    let world = World::new(&[]).await;
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots(&world))
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
    for name in [
        SERVER_NAME,
        "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local",
        "linkerd-policy.linkerd.serviceaccount.identity.linkerd.cluster.local",
    ] {
        let socket = within(TcpStream::connect(world.listen)).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        within(connector.connect(name, socket)).await.unwrap();
    }
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let socket = within(TcpStream::connect(world.listen)).await.unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    assert!(within(connector.connect(name, socket)).await.is_err());
}

#[tokio::test]
async fn clients_that_say_nothing_or_nonsense_hold_nobody_up() {
    let world = World::new(&[]).await;
    let mut open = Vec::new();
    for number in 0..40 {
        let mut socket = within(TcpStream::connect(world.listen)).await.unwrap();
        let bytes: &[u8] = match number % 4 {
            0 => b"",
            1 => b"\x16\x03\x01\x02\x00\x01",
            2 => b"GET / HTTP/1.1\r\n\r\n",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        };
        socket.write_all(bytes).await.unwrap();
        open.push(socket);
    }
    let mut client = world.identity().await;
    let status = client.certify(CertifyRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    drop(open);
}

#[tokio::test]
async fn plaintext_is_served_on_loopback_when_asked_for() {
    let world = World::new(&[]).await.restart(&["--plaintext"]).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", world.listen));
    let channel = within(endpoint.unwrap().connect()).await.unwrap();
    let mut client = linkerd2_proxy_api::identity::identity_client::IdentityClient::new(channel);
    let status = client.certify(CertifyRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[test]
fn plaintext_elsewhere_is_refused() {
    use clap::Parser as _;
    use weft_controller::config::{Cli, Command, Config};
    let flags = [
        "x",
        "run",
        "--source",
        "dir:m",
        "--state",
        "s",
        "--plaintext",
    ];
    let cli = Cli::try_parse_from(flags.iter().chain(&["--policy-addr", "0.0.0.0:8090"]));
    let Command::Run(args) = cli.unwrap().command else {
        panic!("not run");
    };
    let error = Config::try_from(*args).unwrap_err().to_string();
    assert!(error.contains("0.0.0.0:8090"), "{error}");
}
