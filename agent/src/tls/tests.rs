//! Handshakes over real sockets.

use std::time::SystemTime;

use rustls::{ClientConfig, NamedGroup, ProtocolVersion, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    client, crypto,
    server::{self, Accepted},
    testing::{Ca, HOUR, soon, tcp_pair},
    *,
};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const API: &str = "api.shop.serviceaccount.identity.linkerd.cluster.local";

type Server = tokio_rustls::server::TlsStream<TcpStream>;

fn id(identity: &str) -> ServerId {
    ServerId {
        identity: identity.parse().unwrap(),
        server_name: API.into(),
    }
}

/// Both ends of a handshake between `from` and `to`, where `expected` is asked for.
async fn handshake(
    from: &Credentials,
    to: &Credentials,
    expected: &str,
    alpn: bool,
) -> (
    Result<(client::TlsStream, bool), TlsError>,
    Result<(Server, Accepted), TlsError>,
) {
    let (near, far) = tcp_pair().await;
    let expected = id(expected);
    soon(async {
        tokio::join!(
            client::connect(near, from, &expected, alpn),
            server::accept(far, to)
        )
    })
    .await
}

#[tokio::test]
async fn both_ends_prove_who_they_are_with_the_parameters_of_the_mesh() {
    let ca = Ca::new("root");
    let (from, to) = (ca.credentials(WEB), ca.credentials(API));
    for alpn in [false, true] {
        let (client, server) = handshake(&from, &to, API, alpn).await;
        let (mut client, takes_header) = client.unwrap();
        let (mut server, accepted) = server.unwrap();
        assert_eq!(takes_header, alpn);
        let client_id = Some(WEB.parse().unwrap());
        assert_eq!(
            accepted,
            Accepted {
                client: client_id,
                transport_alpn: alpn
            }
        );
        let session = client.get_ref().1;
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(
            session
                .negotiated_key_exchange_group()
                .map(|group| group.name()),
            Some(NamedGroup::X25519MLKEM768)
        );
        assert_eq!(
            session.negotiated_cipher_suite().map(|suite| suite.suite()),
            Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256)
        );
        assert_eq!(server.get_ref().1.server_name(), Some(API));

        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        soon(server.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read, b"ping");
    }
}

#[tokio::test]
async fn a_handshake_in_progress_takes_little_memory() {
    let credentials = Ca::new("root").credentials(WEB);
    let (near, far) = tcp_pair().await;
    let server = id(API);
    let connecting = client::connect(near, &credentials, &server, true);
    assert!(
        size_of_val(&connecting) < 4096,
        "{}",
        size_of_val(&connecting)
    );
    let accepting = server::accept(far, &credentials);
    assert!(
        size_of_val(&accepting) < 4096,
        "{}",
        size_of_val(&accepting)
    );
}

#[tokio::test]
async fn a_server_with_another_identity_is_not_talked_to() {
    let ca = Ca::new("root");
    let (client, _server) = handshake(&ca.credentials(WEB), &ca.credentials(API), WEB, false).await;
    let error = client.expect_err("the peer is not web");
    assert_eq!(
        error.to_string(),
        format!("certificate does not match TLS identity: expected {WEB}, found {API}")
    );
    assert_eq!(error.label(), "tls wrong peer");
}

#[tokio::test]
async fn certificates_that_ended_or_come_from_elsewhere_are_refused_by_either_end() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("foreign"));
    let ended = || SystemTime::now() - HOUR;
    for (case, from, to) in [
        (
            "server ended",
            ca.credentials(WEB),
            ca.credentials_until(API, ended()),
        ),
        (
            "client ended",
            ca.credentials_until(WEB, ended()),
            ca.credentials(API),
        ),
        (
            "both foreign to each other",
            foreign.credentials(WEB),
            ca.credentials(API),
        ),
    ] {
        let (client, server) = handshake(&from, &to, API, false).await;
        // A client learns only with its first read that its certificate was refused.
        let client = match client {
            Ok((mut stream, _)) => soon(stream.read_u8())
                .await
                .map_err(TlsError::Handshake)
                .err(),
            Err(error) => Some(error),
        };
        assert!(client.is_some(), "{case}: client");
        assert!(server.is_err(), "{case}: server");
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_anonymous() {
    let ca = Ca::new("root");
    let to = ca.credentials(API);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(crypto::VERSIONS)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = tcp_pair().await;
    let connector = TlsConnector::from(Arc::new(config));
    let (client, server) = soon(async {
        tokio::join!(
            connector.connect(ServerName::try_from(API).unwrap(), near),
            server::accept(far, &to)
        )
    })
    .await;
    client.unwrap();
    assert_eq!(
        server.unwrap().1,
        Accepted {
            client: None,
            transport_alpn: false
        }
    );
}

#[tokio::test]
async fn garbage_and_a_closed_connection_fail_the_handshake() {
    let to = Ca::new("root").credentials(API);
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x00\x05hello",
        b"",
    ] {
        let (mut near, far) = tcp_pair().await;
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let outcome = soon(server::accept(far, &to)).await;
        assert_eq!(
            outcome.err().map(|error| error.label()),
            Some("tls handshake")
        );
    }
}

#[tokio::test]
async fn a_server_name_that_is_none_is_refused_before_anything_is_sent() {
    let ca = Ca::new("root");
    let (near, _far) = tcp_pair().await;
    let server = ServerId {
        identity: API.parse().unwrap(),
        server_name: "not a name".into(),
    };
    let error = client::connect(near, &ca.credentials(WEB), &server, false).await;
    assert!(matches!(error, Err(TlsError::ServerName(_))));
}

#[test]
fn the_first_name_that_is_an_identity_is_the_clients() {
    let ca = Ca::new("root");
    let spiffe = "spiffe://root.linkerd.cluster.local/vm-1";
    for (names, expected) in [
        (&[WEB][..], Some(WEB)),
        (&[spiffe][..], Some(spiffe)),
        (&[WEB, spiffe][..], Some(WEB)),
        (&["web.shop.", API][..], Some(API)),
        (&["web.shop."][..], None),
        (&["spiffe://nothing"][..], None),
        (&[][..], None),
    ] {
        let leaf = ca.certified(names, SystemTime::now() + HOUR);
        let leaf = leaf.end_entity_cert().unwrap();
        let expected = expected.map(|name| name.parse().unwrap());
        assert_eq!(peer::identity(leaf), expected, "{names:?}");
    }
    assert_eq!(peer::identity(&CertificateDer::from(&b"junk"[..])), None);
}

#[test]
fn a_server_may_have_several_names() {
    let leaf = Ca::new("root").certified(&[API, WEB], SystemTime::now() + HOUR);
    let leaf = leaf.end_entity_cert().unwrap();
    assert!(peer::names(leaf, &WEB.parse().unwrap()));
    assert!(!peer::names(leaf, &"other.ns".parse().unwrap()));
}

#[test]
fn a_bundle_is_good_as_a_whole_or_refused() {
    let (a, b) = (Ca::new("a").pem(), Ca::new("b").pem());
    assert_eq!(
        TrustBundle::from_pem(&format!("{a}\n{b}")).unwrap().len(),
        2
    );
    let broken = a.replacen("MI", "AA", 1);
    for (pem, expected) in [
        ("", "trust bundle holds no certificate"),
        ("not pem", "trust bundle holds no certificate"),
        (&format!("{b}{broken}"), "trust bundle, certificate 2"),
        (
            "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
            "trust bundle, certificate 1: not PEM",
        ),
    ] {
        let error = TrustBundle::from_pem(pem).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn a_hello_offers_what_linkerds_does_in_its_order() {
    let ca = Ca::new("root");
    let (near, mut far) = tcp_pair().await;
    let (from, expected) = (ca.credentials(WEB), id(API));
    let mut hello = vec![0; 5];
    soon(async {
        tokio::select! {
            _ = client::connect(near, &from, &expected, true) => panic!("nobody answers"),
            read = far.read_exact(&mut hello) => read.unwrap(),
        }
    })
    .await;
    let length = u16::from_be_bytes([hello[3], hello[4]]);
    let mut hello = vec![0; length.into()];
    soon(far.read_exact(&mut hello)).await.unwrap();
    // What a capture of linkerd2-proxy's hello has, with the ALPN extension.
    assert_eq!(5 + usize::from(length), 1425 + API.len() + 26);
    let has = |bytes: &[u8]| hello.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(&[0x00, 0x2b, 0, 3, 2, 3, 4]), "versions: TLS 1.3 alone");
    assert!(has(&[0, 6, 0x13, 1, 0x13, 2, 0x13, 3]), "suites");
    assert!(
        has(&[0, 10, 0, 10, 0, 8, 0x11, 0xec, 0, 0x1d, 0, 0x17, 0, 0x18]),
        "groups"
    );
    let schemes = [5, 3, 4, 3, 6, 3, 8, 7, 6, 1, 5, 1, 4, 1];
    assert!(
        has(&[&[0, 13, 0, 16, 0, 14], &schemes[..]].concat()),
        "schemes"
    );
    assert!(
        has(b"\x00\x10\x00\x16\x00\x14\x13transport.l5d.io/v1"),
        "alpn"
    );
}
