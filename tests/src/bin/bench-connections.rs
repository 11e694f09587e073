//! Measures how many TCP connections per second can be set up, with and without capture.
//!
//! `accept` takes connections on an ordinary listener; `borrow` takes them on the listeners that
//! weft-node lends, as an agent would, but does nothing with them. Under the same load from
//! `connect`, the difference between the two is what capture itself costs: the connect hook, the
//! mark's route and the steering. Every accepted connection is reset at once, so that no port
//! waits in TIME_WAIT.
//!
//! Speaks just enough of `weft.lend.v1` to be lent listeners; it asks for no dial sockets.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use prost::Message as _;
use rustix::{
    cmsg_space,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
        sockopt,
    },
};
use serde_json::json;
use tokio::time::Instant;
use weft_api::proto::lend::{
    Ack, Hello, Listener, PodAdded, Serving, ToAgent, ToNode, to_agent, to_node,
};

/// Measures how many TCP connections per second can be set up.
#[derive(clap::Parser)]
#[command(name = "bench-connections")]
enum Command {
    /// Accepts and resets connections on an ordinary listener.
    Accept {
        /// Where to listen.
        #[arg(value_name = "ADDR:PORT")]
        listen: SocketAddr,
    },
    /// Accepts and resets connections on the listeners that weft-node lends.
    Borrow {
        /// weft-node's socket.
        #[arg(value_name = "PATH")]
        socket: PathBuf,
    },
    /// Connects again and again, and prints how often that went well.
    Connect {
        /// Where to connect to.
        #[arg(value_name = "ADDR:PORT")]
        target: SocketAddr,
        /// For how long.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Connections that are tried at the same time.
        #[arg(long, default_value_t = 4)]
        threads: u32,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Accept { listen } => {
            let listener = TcpListener::bind(listen).with_context(|| format!("bind {listen}"))?;
            say(&format!("ready {}", listener.local_addr()?));
            accept(&listener)
        }
        Command::Borrow { socket } => borrow(&socket),
        Command::Connect {
            target,
            seconds,
            threads,
        } => {
            let until =
                Instant::now() + Duration::try_from_secs_f64(seconds).context("--seconds")?;
            load(target, until, threads, seconds)
        }
    }
}

#[expect(clippy::print_stdout, reason = "the line that the starter reads")]
fn say(line: &str) {
    println!("{line}");
}

fn accept(listener: &TcpListener) -> anyhow::Result<()> {
    listener
        .set_nonblocking(false)
        .context("make the listener blocking")?;
    loop {
        match listener.accept() {
            Ok((connection, _peer)) => reset(&connection),
            // The client was faster; the next one will do.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error).context("accept"),
        }
    }
}

/// Makes the drop of a connection reset it. If that cannot be set, it is closed in the long way.
fn reset(connection: &TcpStream) {
    sockopt::set_socket_linger(connection, Some(Duration::ZERO)).ok();
}

#[derive(Default)]
struct Tally {
    connected: u64,
    failed: u64,
}

fn load(target: SocketAddr, until: Instant, threads: u32, seconds: f64) -> anyhow::Result<()> {
    let threads: Vec<_> = (0..threads)
        .map(|_| thread::spawn(move || connect_until(target, until)))
        .collect();
    let mut total = Tally::default();
    for thread in threads {
        let Ok(tally) = thread.join() else {
            bail!("a thread panicked");
        };
        total.connected += tally.connected;
        total.failed += tally.failed;
    }
    let Tally { connected, failed } = total;
    say(&json!({"connected": connected, "failed": failed, "seconds": seconds}).to_string());
    Ok(())
}

fn connect_until(target: SocketAddr, until: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < until {
        if try_connect(target) {
            tally.connected += 1;
        } else {
            tally.failed += 1;
        }
    }
    tally
}

/// Connects and waits for the acceptor's reset, which proves that it was there.
fn try_connect(target: SocketAddr) -> bool {
    let end = TcpStream::connect_timeout(&target, PATIENCE).and_then(|mut connection| {
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.read(&mut [0; 1])
    });
    match end {
        Ok(read) => read == 0,
        // May come before connect returns. A listener that is not there would have refused.
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

/// Plays an agent until weft-node goes away.
fn borrow(path: &Path) -> anyhow::Result<()> {
    let node = dial(path).with_context(|| format!("connect to {}", path.display()))?;
    let hello = Hello {
        version: 1,
        instance: rand::random(),
        ..Hello::default()
    };
    send(&node, to_node::Message::Hello(hello))?;
    let mut packet = vec![0; MAX_PACKET];
    loop {
        let (length, fds) = receive(&node, &mut packet)?;
        if length == 0 {
            bail!("weft-node ended the connection");
        }
        let message = ToAgent::decode(packet.get(..length).unwrap_or_default())?;
        let mut is_snapshot_end = false;
        match message.message {
            Some(to_agent::Message::PodAdded(added)) => serve(&added, fds),
            Some(to_agent::Message::SnapshotSent(_)) => is_snapshot_end = true,
            Some(to_agent::Message::Drain(_)) => bail!("a newer agent has come"),
            Some(
                to_agent::Message::Welcome(_)
                | to_agent::Message::PodChanged(_)
                | to_agent::Message::PodRemoved(_)
                | to_agent::Message::Sockets(_),
            )
            | None => {}
        }
        let ack = Ack {
            seq: message.seq,
            ..Ack::default()
        };
        send(&node, to_node::Message::Ack(ack))?;
        if is_snapshot_end {
            send(&node, to_node::Message::Serving(Serving {}))?;
            say("ready borrowed");
        }
    }
}

/// Starts a thread for each listener of the pod that peers or its own programs connect to.
fn serve(added: &PodAdded, fds: Vec<OwnedFd>) {
    for (kind, fd) in added.listeners().zip(fds) {
        if matches!(
            kind,
            Listener::AdminV4 | Listener::AdminV6 | Listener::Unspecified
        ) {
            continue;
        }
        thread::spawn(move || accept(&TcpListener::from(fd)));
    }
}

fn dial(path: &Path) -> anyhow::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn send(node: &OwnedFd, message: to_node::Message) -> anyhow::Result<()> {
    let packet = ToNode {
        message: Some(message),
    }
    .encode_to_vec();
    let none = &mut SendAncillaryBuffer::default();
    sendmsg(node, &[IoSlice::new(&packet)], none, SendFlags::NOSIGNAL).context("tell weft-node")?;
    Ok(())
}

fn receive(node: &OwnedFd, packet: &mut [u8]) -> anyhow::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(packet)];
    let received = recvmsg(
        node.as_fd(),
        buffers,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let length = received.context("hear weft-node")?.bytes;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((length, fds))
}

/// Limits of the protocol.
const MAX_PACKET: usize = 65_536;
const MAX_DESCRIPTORS: usize = 64;
