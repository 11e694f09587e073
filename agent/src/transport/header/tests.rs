//! Headers byte for byte, and over real sockets.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::tls::testing::{soon, tcp_pair};

const LIMIT: Duration = Duration::from_secs(10);

fn header(port: u16, name: &str, session: Option<Session>) -> TransportHeader {
    TransportHeader {
        port: NonZeroU16::new(port).unwrap(),
        name: (!name.is_empty()).then(|| name.into()),
        session,
    }
}

#[test]
fn headers_are_byte_for_byte_what_linkerd_sends() {
    let preface = "transport.l5d.io/v1\r\n\r\n";
    for (header, expected) in [
        (header(80, "", None), "\0\0\0\x02\x08\x50"),
        (
            header(8080, "", Some(Session::Http1)),
            "\0\0\0\x07\x08\u{90}\x3f\x1a\x02\x0a\0",
        ),
        (
            header(8080, "", Some(Session::Http2)),
            "\0\0\0\x07\x08\u{90}\x3f\x1a\x02\x12\0",
        ),
        (
            header(65535, "web.shop.svc", Some(Session::Http2)),
            "\0\0\0\x16\x08\u{ff}\u{ff}\x03\x12\x0cweb.shop.svc\x1a\x02\x12\0",
        ),
    ] {
        // A character stands for a byte, so that the table can be read.
        let expected: Vec<u8> = preface
            .chars()
            .chain(expected.chars())
            .map(|byte| u8::try_from(u32::from(byte)).unwrap())
            .collect();
        assert_eq!(
            header.encode().escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        assert_eq!(decode(&expected).unwrap(), Some((header, expected.len())));
        for end in 0..expected.len() {
            assert_eq!(decode(&expected[..end]).unwrap(), None, "first {end} bytes");
        }
    }
}

#[test]
fn what_is_no_header_is_refused_as_soon_as_that_is_clear() {
    let with = |rest: &[u8]| [&PREFACE[..], rest].concat();
    for (bytes, expected) in [
        (
            b"t0".to_vec(),
            "no transport header where one was agreed on",
        ),
        (
            b"GET / HTTP/1.1\r\n".to_vec(),
            "no transport header where one was agreed on",
        ),
        (
            with(&[0, 1, 0, 0]),
            "transport header of 65536 bytes is longer than 64 KiB",
        ),
        (
            with(&[0xff; 4]),
            "transport header of 4294967295 bytes is longer than 64 KiB",
        ),
        (with(&[0, 0, 0, 1, 0xff]), "transport header does not parse"),
        (with(&[0, 0, 0, 0]), "transport header names port 0"),
        (
            with(&[0, 0, 0, 4, 8, 0x80, 0x80, 4]),
            "transport header names port 65536",
        ),
    ] {
        assert_eq!(decode(&bytes).unwrap_err().to_string(), expected);
    }
}

#[tokio::test]
async fn what_follows_a_header_stays_to_be_read() {
    let (mut near, far) = tcp_pair().await;
    let mut far = Io::from(far);
    let sent = header(8080, "web", None);
    near.write_all(&[&sent.encode(), &b"hello"[..]].concat())
        .await
        .unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(soon(read(&mut far, LIMIT)).await.unwrap(), sent);
    let mut rest = Vec::new();
    soon(far.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_header_that_does_not_come_is_an_error() {
    let (near, far) = tcp_pair().await;
    let mut far = Io::from(far);
    let error = read(&mut far, LIMIT).await.unwrap_err();
    assert_eq!(error.label(), "transport header timeout");
    drop(near);
    let error = read(&mut far, LIMIT).await.unwrap_err();
    assert_eq!(error.label(), "i/o");
}
