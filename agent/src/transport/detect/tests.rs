//! Detection over real sockets, and the parsers on everything that may come.

use rustls::ClientConnection;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    hello::{Parsed, parse},
    *,
};
use crate::tls::testing::{Ca, soon, tcp_pair};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const LIMIT: Duration = Duration::from_secs(10);

/// A hello as our own client sends it.
fn hello() -> Vec<u8> {
    let config = Ca::new("root").credentials(WEB).client_transport;
    let mut client = ClientConnection::new(config, WEB.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A connection on which `bytes` have been read ahead already, and its other end.
async fn read_ahead(bytes: &[u8]) -> (TcpStream, Rewind<TcpStream>) {
    let (mut near, far) = tcp_pair().await;
    let mut far = Rewind::new(far);
    near.write_all(bytes).await.unwrap();
    while far.buffered().len() < bytes.len() {
        far.fill(HELLO_ROOM).await.unwrap();
    }
    (near, far)
}

#[tokio::test]
async fn a_hello_in_two_segments_is_found_and_put_back() {
    let hello = hello();
    assert!(hello.len() > 1448, "a hybrid key share takes two segments");
    for split in [0, 1, 4, 5, 6, 43, 1448, hello.len() - 1, hello.len()] {
        let (first, second) = hello.split_at(split);
        let (mut near, mut far) = read_ahead(first).await;
        near.write_all(second).await.unwrap();
        let found = soon(tls(&mut far, LIMIT)).await.unwrap();
        assert_eq!(found, TlsHello::Sni(WEB.into()), "split at {split}");
        let mut read = vec![0; hello.len()];
        soon(far.read_exact(&mut read)).await.unwrap();
        assert_eq!(read, hello);
        assert_eq!(far.buffered(), b"");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_hello_and_silence_is_an_error() {
    let hello = hello();
    for sent in [&hello[..0], &hello[..1], &hello[..700]] {
        let (_near, mut far) = read_ahead(sent).await;
        let error = tls(&mut far, LIMIT).await.unwrap_err();
        assert_eq!(error.label(), "tls detection timeout");
    }
}

#[tokio::test]
async fn what_is_no_hello_is_said_to_be_none_at_once() {
    let hello = hello();
    let mut long = hello.clone();
    long[3..5].copy_from_slice(&8193_u16.to_be_bytes());
    let mut old = hello.clone();
    old[2] = 0;
    for (case, bytes) in [
        ("http", &b"GET / HTTP/1.1\r\n\r\n"[..]),
        ("one byte", b"G"),
        ("long record", &long),
        ("SSL 3", &old),
        ("not a handshake", b"\x17\x03\x03\x00\x05hello"),
        ("not a hello", b"\x16\x03\x03\x00\x05\x02"),
        ("empty record", b"\x16\x03\x03\x00\x00"),
    ] {
        let (_near, mut far) = read_ahead(bytes).await;
        assert_eq!(
            tls(&mut far, LIMIT).await.unwrap(),
            TlsHello::NotTls,
            "{case}"
        );
        assert_eq!(far.buffered(), bytes, "{case}");
    }
    let (near, mut far) = read_ahead(&hello[..100]).await;
    drop(near);
    assert_eq!(soon(tls(&mut far, LIMIT)).await.unwrap(), TlsHello::NotTls);
}

#[test]
fn every_beginning_of_a_hello_needs_more() {
    let hello = hello();
    for end in 0..hello.len() {
        assert_eq!(
            parse(&hello[..end]),
            Parsed::Incomplete,
            "first {end} bytes"
        );
    }
    assert_eq!(parse(&hello), Parsed::Hello(Some(WEB)));
    let more = [&hello[..], b"more"].concat();
    assert_eq!(parse(&more), Parsed::Hello(Some(WEB)));
}

#[test]
fn a_hello_of_which_a_part_is_in_another_record_is_not_ours() {
    let hello = hello();
    let mut split = hello[..5 + 600].to_vec();
    split[3..5].copy_from_slice(&600_u16.to_be_bytes());
    assert_eq!(parse(&split), Parsed::NotTls);
}

#[test]
fn names_that_are_none_are_left_out() {
    let hello = hello();
    let at = hello
        .windows(WEB.len())
        .position(|window| window == WEB.as_bytes())
        .unwrap();
    for (offset, byte) in [(0, b' '), (3, 0), (5, 0xff)] {
        let mut hello = hello.clone();
        hello[at + offset] = byte;
        assert_eq!(parse(&hello), Parsed::Hello(None));
    }
}

/// Not a fuzzer, but every run tries the same 50,000 damaged hellos.
#[test]
fn damaged_hellos_are_never_read_past_their_end() {
    let hello = hello();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut named = 0;
    for _nth in 0..50_000 {
        let mut damaged = hello.clone();
        for _hit in 0..=draw(3) {
            // Mostly in the first bytes and the extensions' heads, where lengths are.
            let at = match draw(2) {
                0 => draw(150),
                _ => draw(damaged.len()),
            };
            damaged[at] = u8::try_from(draw(256)).unwrap();
        }
        damaged.truncate(draw(damaged.len() * 2));
        if parse(&damaged) == Parsed::Hello(Some(WEB)) {
            named += 1;
        }
    }
    assert!(named > 2_500, "some of the damage does not matter: {named}");
}

#[test]
fn the_first_bytes_decide_about_http() {
    for (bytes, expected) in [
        (&b""[..], None),
        (b"G", None),
        (b"GET / HTTP/1.", None),
        (b"GET / HTTP/1.1", Some(Http::Http1)),
        (b"\r\nGET / HTTP/1.0\r\n\r\n", Some(Http::Http1)),
        (
            b"POST /a?b=c HTTP/1.1\r\nhost: x\r\n\r\nbody",
            Some(Http::Http1),
        ),
        (b"CONNECT example.com:443 HTTP/1.1\r\n", Some(Http::Http1)),
        (b"PRI * HTTP/2.", None),
        (b"PRI * HTTP/2.0", Some(Http::Http2)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Some(Http::Http2)),
        (b"PROPFIND / HTTP/1.1\r\n", Some(Http::Http1)),
        // Other protocols: at once, though fewer than 14 bytes have come.
        (b"\0\0\0\x08\x04\xd2\x16/", Some(Http::NotHttp)),
        (b"*1\r\n$4\r\nPING\r\n", Some(Http::NotHttp)),
        (b"PING\r\n", Some(Http::NotHttp)),
        (b"EHLO x\n", Some(Http::NotHttp)),
        (b"SSH-2.0-OpenSSH_9.9\r\n", Some(Http::NotHttp)),
        (b"\x16\x03\x01", Some(Http::NotHttp)),
        (b"GET /\r\n", Some(Http::NotHttp)),
        (b"GET / SPDY/3.1\r\n", Some(Http::NotHttp)),
    ] {
        assert_eq!(
            classify(bytes),
            expected,
            "{:?}",
            bytes.escape_ascii().to_string()
        );
    }
}

#[tokio::test]
async fn a_request_in_small_pieces_is_http() {
    let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    for split in [0, 1, 2, 5, 13] {
        let (first, second) = request.split_at(split);
        let (mut near, far) = read_ahead(first).await;
        let mut far = Io::from(far);
        near.write_all(second).await.unwrap();
        assert_eq!(
            soon(http(&mut far, LIMIT)).await,
            Http::Http1,
            "split at {split}"
        );
        let mut read = vec![0; request.len()];
        soon(far.read_exact(&mut read)).await.unwrap();
        assert_eq!(read, request);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_http_and_the_bytes_stay() {
    for sent in [&b""[..], b"GET / HT"] {
        let (_near, far) = read_ahead(sent).await;
        let mut far = Io::from(far);
        assert_eq!(http(&mut far, LIMIT).await, Http::TimedOut);
        assert_eq!(far.buffered(), sent);
    }
}

#[tokio::test]
async fn a_connection_that_ends_is_told_from_one_that_said_something() {
    for (sent, expected) in [(&b""[..], Http::Eof), (b"GET", Http::NotHttp)] {
        let (near, far) = read_ahead(sent).await;
        let mut far = Io::from(far);
        drop(near);
        assert_eq!(soon(http(&mut far, LIMIT)).await, expected);
        assert_eq!(far.buffered(), sent);
    }
}
