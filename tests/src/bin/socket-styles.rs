//! Connects in every way that programs do, and says what each socket believes about itself.
//!
//! Runs inside a pod: capture looks at processes, and a test's own thread would not be one of the
//! pod's. `serve` is the other end: an HTTP server that answers with both addresses of the
//! connection as it sees them.
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connects in every way that programs do.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers every request with the addresses of its connection.
    Serve {
        /// Addresses to listen on.
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Prints one JSON object per style.
    Connect {
        /// Server to connect to.
        target: SocketAddr,
        /// Only these styles.
        #[arg(long)]
        style: Vec<String>,
    },
    /// Connects, prints `connected`, and prints what happens to each line of standard input that
    /// is sent.
    Hold {
        /// Server to connect to.
        target: SocketAddr,
        /// Sets this mark on the socket before.
        #[arg(long)]
        mark: Option<u32>,
    },
    /// Asks weft-node for sockets as an agent would, and prints how far it came.
    Borrow {
        /// The lending socket.
        path: std::path::PathBuf,
    },
    /// Asks for a large answer, reads one byte, and then nothing until standard input ends.
    Stall {
        /// Server to connect to.
        target: SocketAddr,
        /// Path to ask for.
        path: String,
        /// How many connections do that.
        #[arg(long, default_value_t = 1)]
        connections: usize,
    },
}

const LIMIT: Duration = Duration::from_secs(8);

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Serve { listen } => serve(&listen),
        Command::Connect { target, style } => {
            for (name, connect) in STYLES {
                if style.is_empty() || style.iter().any(|wanted| wanted == name) {
                    println!("{}", row(name, target, *connect));
                }
            }
            Ok(())
        }
        Command::Hold { target, mark } => hold(target, mark),
        Command::Borrow { path } => {
            match borrow(&path) {
                Ok(count) => println!("got {count}"),
                Err(error) => println!("refused {error:#}"),
            }
            Ok(())
        }
        Command::Stall {
            target,
            path,
            connections,
        } => stall(target, &path, connections),
    }
}

type Connect = fn(SocketAddr) -> Result<Socket>;

/// Every style by name. `mapped-*` take IPv4 targets, the others either family.
const STYLES: &[(&str, Connect)] = &[
    ("blocking", blocking),
    ("nonblocking", nonblocking),
    ("bind-any", bind_any),
    ("bind-own", bind_own),
    ("bind-port", bind_port),
    ("bind-device", bind_device),
    ("bind-no-port", bind_no_port),
    ("reuse-port", reuse_port),
    ("own-mark", own_mark),
    ("fastopen-connect", fastopen_connect),
    ("fastopen-sendto", fastopen_sendto),
    ("mptcp", mptcp),
    ("reconnect", reconnect),
    ("mapped", mapped),
    ("mapped-bind-any", mapped_bind_any),
    ("from-child", from_child),
];

fn row(name: &str, target: SocketAddr, connect: Connect) -> Value {
    match attempt(target, connect) {
        Ok(Some(row)) => json!({"style": name, "ok": true, "seen": row}),
        Ok(None) => json!({"style": name, "ok": true, "skipped": true}),
        Err(error) => json!({"style": name, "ok": false, "error": format!("{error:#}")}),
    }
}

/// Marks a style that does not exist for the target's family.
#[derive(Debug, thiserror::Error)]
#[error("not for this family")]
struct NotForFamily;

fn attempt(target: SocketAddr, connect: Connect) -> Result<Option<Value>> {
    let socket = match connect(target) {
        Err(error) if error.is::<NotForFamily>() => return Ok(None),
        socket => socket?,
    };
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let before = (stream.peer_addr()?, stream.local_addr()?);
    stream.write_all(&request(target)).context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receive")?;
    let reply = weft_tests::http::parse(&answer)?;
    ensure!(
        reply.status == 200,
        "status {}: {}",
        reply.status,
        reply.body
    );
    let server: Value = serde_json::from_str(&reply.body).context("body")?;
    Ok(Some(json!({
        "peer": before.0,
        "local": before.1,
        "server_peer": server["peer"],
        "server_local": server["local"],
    })))
}

fn request(target: SocketAddr) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n").into_bytes()
}

fn tcp(target: SocketAddr) -> Result<Socket> {
    let domain = Domain::for_address(target);
    Ok(Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?)
}

fn finish(socket: Socket, target: SocketAddr) -> Result<Socket> {
    socket
        .connect_timeout(&target.into(), LIMIT)
        .context("connect")?;
    Ok(socket)
}

fn blocking(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.connect(&target.into()).context("connect")?;
    Ok(socket)
}

fn nonblocking(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.set_nonblocking(true)?;
    connect_pending(&socket, &target.into())?;
    Ok(socket)
}

/// Connects a non-blocking socket and waits until it is writable.
fn connect_pending(socket: &Socket, target: &SockAddr) -> Result<()> {
    match socket.connect(target) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            return Err(error).context("connect");
        }
        _pending => {}
    }
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    let limit = Timespec {
        tv_sec: 8,
        tv_nsec: 0,
    };
    ensure!(poll(&mut fds, Some(&limit))? == 1, "connect timed out");
    match socket.take_error()? {
        Some(error) => Err(error).context("connect"),
        None => Ok(()),
    }
}

const fn any(target: SocketAddr, port: u16) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        SocketAddr::V6(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    }
}

fn bind_any(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.bind(&any(target, 0).into())?;
    finish(socket, target)
}

/// The address that this pod uses towards the target, asked from the route table through UDP.
fn own_address(target: SocketAddr) -> Result<IpAddr> {
    let probe = std::net::UdpSocket::bind(any(target, 0))?;
    probe.connect(target)?;
    Ok(probe.local_addr()?.ip())
}

fn bind_own(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.bind(&SocketAddr::new(own_address(target)?, 0).into())?;
    finish(socket, target)
}

fn bind_port(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.set_reuse_address(true)?;
    socket.bind(&any(target, 23_456).into())?;
    finish(socket, target)
}

fn bind_device(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.bind_device(Some(b"eth0"))?;
    finish(socket, target)
}

fn bind_no_port(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    set_int(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(own_address(target)?, 0).into())?;
    finish(socket, target)
}

fn reuse_port(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.set_reuse_port(true)?;
    socket.bind(&any(target, 0).into())?;
    finish(socket, target)
}

fn own_mark(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    socket.set_mark(0x7)?;
    finish(socket, target)
}

fn fastopen_connect(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    set_int(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    // Without a cookie of the server the handshake happens at once.
    finish(socket, target)
}

fn fastopen_sendto(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    // A header that makes the request whole comes with the rest.
    let start = b"GET /early HTTP/1.1\r\nhost: early\r\n\r\n";
    let sent = socket
        .send_to_with_flags(start, &target.into(), libc::MSG_FASTOPEN)
        .context("sendto")?;
    ensure!(sent == start.len(), "only {sent} bytes sent");
    let mut stream = TcpStream::from(socket.try_clone()?);
    stream.set_read_timeout(Some(LIMIT))?;
    let mut early = [0; 16];
    stream.read_exact(&mut early).context("receive")?;
    ensure!(early.starts_with(b"HTTP/1.1 200"), "{early:?}");
    drain_answer(&mut stream)?;
    Ok(socket)
}

/// Reads the rest of an answer whose body is one JSON object.
fn drain_answer(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    while byte != *b"}" {
        stream.read_exact(&mut byte)?;
    }
    Ok(())
}

fn mptcp(target: SocketAddr) -> Result<Socket> {
    let domain = Domain::for_address(target);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)).context("MPTCP")?;
    finish(socket, target)
}

/// Connects, dissolves the association, and connects again with the same socket.
fn reconnect(target: SocketAddr) -> Result<Socket> {
    let socket = blocking(target)?;
    // SAFETY: the address is a zeroed sockaddr_storage, which is AF_UNSPEC and long enough.
    let dissolved = unsafe {
        let nothing: libc::sockaddr_storage = std::mem::zeroed();
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_in6>())?;
        libc::connect(socket.as_raw_fd(), (&raw const nothing).cast(), length)
    };
    ensure!(dissolved == 0, "{}", std::io::Error::last_os_error());
    socket.connect(&target.into()).context("second connect")?;
    Ok(socket)
}

fn to_mapped(target: SocketAddr) -> Result<SocketAddr> {
    match target {
        SocketAddr::V4(v4) => Ok(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())),
        SocketAddr::V6(_) => Err(NotForFamily.into()),
    }
}

fn mapped(target: SocketAddr) -> Result<Socket> {
    let target = to_mapped(target)?;
    let socket = tcp(target)?;
    socket.set_only_v6(false)?;
    finish(socket, target)
}

fn mapped_bind_any(target: SocketAddr) -> Result<Socket> {
    let target = to_mapped(target)?;
    let socket = tcp(target)?;
    socket.set_only_v6(false)?;
    socket.bind(&any(target, 0).into())?;
    finish(socket, target)
}

/// Connects on another thread than the one that made the socket, as runtimes with pools do.
fn from_child(target: SocketAddr) -> Result<Socket> {
    let socket = tcp(target)?;
    let thread = std::thread::spawn(move || finish(socket, target));
    match thread.join() {
        Ok(result) => result,
        Err(_panic) => bail!("thread panicked"),
    }
}

fn set_int(socket: &Socket, level: i32, option: i32, value: i32) -> Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        let length = libc::socklen_t::try_from(size_of::<i32>())?;
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

fn serve(listen: &[SocketAddr]) -> Result<()> {
    let mut threads = Vec::new();
    for address in listen {
        let socket = tcp(*address)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&(*address).into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from(socket);
        threads.push(std::thread::spawn(move || accept(&listener)));
    }
    println!("ready");
    for thread in threads {
        thread.join().ok();
    }
    Ok(())
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream).ok());
    }
}

/// Answers the requests of one connection; `/large` with 64 MiB.
fn answer(mut stream: TcpStream) -> Result<()> {
    let body = json!({"peer": stream.peer_addr()?, "local": stream.local_addr()?}).to_string();
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part)?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&part[..count]);
        if !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
            continue;
        }
        let is_large = bytes.starts_with(b"GET /large ");
        let closes = bytes
            .windows(17)
            .any(|window| window == b"connection: close");
        bytes.clear();
        let length = if is_large { 64 << 20 } else { body.len() };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        if is_large {
            let part = vec![b'x'; 64 << 10];
            for _ in 0..1024 {
                stream.write_all(&part)?;
            }
        } else {
            stream.write_all(body.as_bytes())?;
        }
        if closes {
            return Ok(());
        }
    }
}

fn hold(target: SocketAddr, mark: Option<u32>) -> Result<()> {
    let socket = tcp(target)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    let socket = match finish(socket, target) {
        Ok(socket) => socket,
        Err(error) => {
            println!("refused {error:#}");
            return Ok(());
        }
    };
    println!("connected");
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(LIMIT))?;
    for line in std::io::stdin().lines() {
        match stream.write_all(format!("{}\r\n", line?).as_bytes()) {
            Ok(()) => println!("sent"),
            Err(error) => println!("failed {error}"),
        }
    }
    Ok(())
}

/// Says hello and gives the length of the first answer.
fn borrow(path: &std::path::Path) -> Result<usize> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(&SockAddr::unix(path)?).context("connect")?;
    // ToNode{hello: Hello{version: 1, instance: 7}}
    socket.send(&[0x0a, 4, 8, 1, 16, 7]).context("send")?;
    let mut answer = [0; 4096];
    Ok((&socket).read(&mut answer)?)
}

fn stall(target: SocketAddr, path: &str, connections: usize) -> Result<()> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::from(blocking(target)?);
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes())?;
        let mut first = [0];
        stream.read_exact(&mut first).context("first byte")?;
        streams.push(stream);
    }
    println!("stalled");
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    Ok(())
}
