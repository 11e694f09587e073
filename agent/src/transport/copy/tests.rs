//! Two connections and what passes between them.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::*;
use crate::tls::{
    ServerId, client, server,
    testing::{Ca, soon, tcp_pair},
};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

/// A client and a server with a pair of connections between them that is being copied.
struct Pair {
    client: Io,
    server: TcpStream,
    forth: Arc<ByteCounter>,
    back: Arc<ByteCounter>,
    copying: JoinSet<Result<Passed, CopyError>>,
}

impl Pair {
    async fn plain() -> Self {
        let (client, first) = tcp_pair().await;
        Self::between(client.into(), first.into()).await
    }

    async fn tls() -> Self {
        let ca = Ca::new("root");
        let credentials = ca.credentials(WEB);
        let peer = ServerId {
            identity: WEB.parse().unwrap(),
            server_name: WEB.into(),
        };
        let (near, far) = tcp_pair().await;
        let (near, far) = tokio::join!(
            client::connect(near, &credentials, &peer, false),
            server::accept(super::super::io::Rewind::new(far), &credentials)
        );
        Self::between(near.unwrap().0.into(), far.unwrap().0.into()).await
    }

    async fn between(client: Io, first: Io) -> Self {
        let (second, server) = tcp_pair().await;
        let (forth, back) = <(Arc<ByteCounter>, Arc<ByteCounter>)>::default();
        let mut copying = JoinSet::new();
        let counters = (Arc::clone(&forth), Arc::clone(&back));
        copying
            .spawn(async move { duplex(first, second.into(), (&*counters.0, &*counters.1)).await });
        Self {
            client,
            server,
            forth,
            back,
            copying,
        }
    }

    async fn ended(&mut self) -> Result<Passed, CopyError> {
        soon(self.copying.join_next()).await.unwrap().unwrap()
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    for mut pair in [Pair::plain().await, Pair::tls().await] {
        pair.client.write_all(b"request").await.unwrap();
        pair.client.shutdown().await.unwrap();
        let mut read = Vec::new();
        soon(pair.server.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read, b"request");
        pair.server.write_all(b"a longer answer").await.unwrap();
        drop(pair.server.shutdown().await);
        let mut read = Vec::new();
        soon(pair.client.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read, b"a longer answer");
        let passed = pair.ended().await.unwrap();
        assert_eq!(passed, Passed { forth: 7, back: 15 });
        assert_eq!((pair.forth.get(), pair.back.get()), (7, 15));
    }
}

#[tokio::test]
async fn much_passes_both_ways_at_once_and_in_order() {
    for pair in [Pair::plain().await, Pair::tls().await] {
        let data = pattern(5_000_000);
        let (mut client_reads, mut client_writes) = tokio::io::split(pair.client);
        let (mut server_reads, mut server_writes) = pair.server.into_split();
        let send = async |writer: &mut (dyn tokio::io::AsyncWrite + Unpin)| {
            writer.write_all(&data).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let (mut there, mut here) = (Vec::new(), Vec::new());
        let (_, _, forth, back) = soon(async {
            tokio::join!(
                send(&mut client_writes),
                send(&mut server_writes),
                server_reads.read_to_end(&mut there),
                client_reads.read_to_end(&mut here)
            )
        })
        .await;
        forth.and(back).unwrap();
        assert!(there == data && here == data);
    }
}

#[tokio::test]
async fn a_reader_that_stalls_stops_the_writer_and_loses_nothing() {
    let mut pair = Pair::tls().await;
    let data = pattern(64 * 1024 * 1024);
    let mut sent = 0;
    // Elapses because nobody reads; how much the kernel takes until then differs by machine.
    while let Ok(written) = tokio::time::timeout(
        std::time::Duration::from_millis(300),
        pair.client.write(&data[sent..]),
    )
    .await
    {
        sent += written.unwrap();
        assert!(sent < data.len(), "the writer was never stopped");
    }
    let mut read = vec![0; sent];
    let reading = async {
        pair.server.read_exact(&mut read).await.unwrap();
    };
    soon(async { tokio::join!(reading, async { pair.client.flush().await.unwrap() }) }).await;
    assert!(read == data[..sent]);
    assert_eq!(pair.forth.get(), sent as u64);
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let mut pair = Pair::plain().await;
    pair.client.write_all(b"some").await.unwrap();
    let mut read = [0; 4];
    soon(pair.server.read_exact(&mut read)).await.unwrap();
    pair.client.reset_on_drop();
    drop(pair.client);
    let error = soon(pair.server.read(&mut read)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = soon(pair.copying.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!((error.side, error.is_ordinary()), (Side::First, true));
}

#[tokio::test]
async fn tls_that_is_cut_off_does_not_look_finished() {
    let mut pair = Pair::tls().await;
    pair.client.write_all(b"half of").await.unwrap();
    let mut read = [0; 7];
    soon(pair.server.read_exact(&mut read)).await.unwrap();
    // Closes the TCP connection without the alert that ends TLS.
    drop(pair.client);
    let error = soon(pair.server.read(&mut read)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = soon(pair.copying.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_reset_by_the_server_reaches_the_client() {
    let mut pair = Pair::plain().await;
    pair.server.set_zero_linger().unwrap();
    drop(pair.server);
    let error = soon(pair.client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = soon(pair.copying.join_next()).await.unwrap().unwrap();
    assert_eq!(error.unwrap_err().side, Side::Second);
}

#[tokio::test]
async fn a_quiet_pair_holds_no_buffer() {
    let mut pair = Pair::plain().await;
    for _round in 0..3 {
        pair.client.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        soon(pair.server.read_exact(&mut read)).await.unwrap();
    }
    assert_eq!(buffer::kept(), 1, "one buffer serves the thread");
    let (a, b) = tcp_pair().await;
    let counters = (&ByteCounter::default(), &ByteCounter::default());
    let future = duplex(a.into(), b.into(), (counters.0, counters.1));
    assert!(size_of_val(&future) < 700, "{} bytes", size_of_val(&future));
}
