//! Accepts connections on a lent listener.
//!
//! Every worker thread registers a duplicate of the listener with its own runtime, so that a
//! connection lives where it was accepted. Options are inherited from the listener, see
//! `options`.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// A wait after the process or the kernel ran out of something.
const BREATHER: Duration = Duration::from_millis(50);

/// A connection that was accepted. Addresses are canonical: an IPv4 peer of an IPv6 listener has
/// an IPv4 address.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Where it comes from.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub original_dst: SocketAddr,
}

/// Makes a duplicate of a listener known to the present runtime.
///
/// # Errors
/// When descriptors have run out.
pub fn register(listener: &std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener.try_clone()?)
}

/// Accepts until stopped and gives each connection to `serve`, which does not wait.
pub async fn accept(
    listener: TcpListener,
    stop: CancellationToken,
    mut serve: impl FnMut(Accepted),
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let error = match accepted.and_then(|(stream, client)| describe(stream, client)) {
            Ok(accepted) => {
                serve(accepted);
                continue;
            }
            Err(error) => error,
        };
        if is_exhaustion(&error) {
            warn!(%error, "connections cannot be accepted");
            tokio::time::sleep(BREATHER).await;
        } else {
            debug!(%error, "connection ended while it was accepted");
        }
    }
}

fn describe(stream: TcpStream, client: SocketAddr) -> io::Result<Accepted> {
    let original_dst = stream.local_addr()?;
    Ok(Accepted {
        stream,
        client: canonical(client),
        original_dst: canonical(original_dst),
    })
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}
