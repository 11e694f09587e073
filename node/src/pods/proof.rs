//! Proves that a marked connection of a pod reaches the pod's outbound listener: rule, route,
//! steering program, slot and listener in one go.
//!
//! A socket made in the pod's namespace, marked by hand, connects to an address that nobody has
//! (reserved for documentation). If its connection comes out of the listener's queue, all parts
//! work. Capture is off at that time, so nothing else can be in the queue, and nobody else accepts
//! yet. What it cannot show is the connect hook, which goes by the pod's own sockets: that part is
//! a map entry, read back by the kernel side's `verify`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    time::Duration,
};

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;
use tokio::time::Instant;

use crate::pods::sockets::{self, Family};

/// How long the connection may take: it never leaves the machine.
const PATIENCE: Duration = Duration::from_millis(500);

/// Addresses reserved for documentation (RFC 5737, RFC 3849) or discarding (RFC 6666).
const NOBODY: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)),
];

/// RFC 863, discard.
const PORT: u16 = 9;

/// Why steering is not proven.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The test socket cannot be made or marked.
    #[error("make a marked test socket in the pod")]
    Socket(#[source] io::Error),
    /// The connection failed at once.
    #[error(
        "a marked test connection to {0} cannot be opened: is lo up in the pod, and is there a rule or firewall of others?"
    )]
    Connect(SocketAddr, #[source] io::Error),
    /// Nothing arrived.
    #[error(
        "a marked test connection to {0} did not reach the pod's outbound listener within {PATIENCE:?}: look for routing rules or firewalls of others in the pod"
    )]
    NotSteered(SocketAddr),
    /// The listener is broken.
    #[error("accept the test connection")]
    Accept(#[source] io::Error),
}

/// An address of the family that steering applies to, given what is not captured. `None` if
/// everything is left out, and there is nothing to prove.
pub fn destination(family: Family, skipped: &[IpNet]) -> Option<SocketAddr> {
    NOBODY
        .into_iter()
        .filter(|address| Family::of(*address) == family)
        .find(|address| !skipped.iter().any(|net| net.contains(address)))
        .map(|address| SocketAddr::new(address, PORT))
}

/// Starts the connection. Runs inside the pod's namespace, does not wait.
///
/// # Errors
/// When the socket cannot be made, or the kernel refuses at once.
pub fn start(mark: u32, destination: SocketAddr) -> Result<Socket, ProofError> {
    let socket = sockets::dial(Family::of(destination.ip())).map_err(ProofError::Socket)?;
    // If the rule does not work, the packet is not to get far.
    let bounded = match destination {
        SocketAddr::V4(_) => socket.set_ttl_v4(1),
        SocketAddr::V6(_) => socket.set_unicast_hops_v6(1),
    };
    bounded
        .and_then(|()| socket.set_mark(mark))
        .map_err(ProofError::Socket)?;
    match socket.connect(&destination.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(ProofError::Connect(destination, error)),
    }
}

/// Waits until the listener has accepted the test connection, and drops it.
///
/// # Errors
/// When it does not come.
pub fn finish(test: &Socket, destination: SocketAddr, listener: &Socket) -> Result<(), ProofError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProofError::NotSteered(destination));
        }
        let mut poll_fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        let timeout = Timespec::try_from(left).map_err(|_overflow| {
            ProofError::Accept(io::Error::from(io::ErrorKind::InvalidInput))
        })?;
        match poll(&mut poll_fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ProofError::Accept(error.into())),
        }
        match listener.accept() {
            Ok((accepted, _peer)) if is_same(&accepted, test, destination) => return Ok(()),
            // Somebody in the pod connected to the listener's own address: nobody has business
            // there, and the agent would drop it too.
            Ok(_stranger) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => refused(test, destination)?,
            Err(error) => return Err(ProofError::Accept(error)),
        }
    }
}

/// Waits until the connection is open, for listeners that an agent may be accepting on.
///
/// # Errors
/// When it does not come about.
pub fn connected(test: &Socket, destination: SocketAddr) -> Result<(), ProofError> {
    let mut poll_fds = [PollFd::from_borrowed_fd(test.as_fd(), PollFlags::OUT)];
    let timeout = Timespec::try_from(PATIENCE).ok();
    poll(&mut poll_fds, timeout.as_ref()).map_err(|error| ProofError::Accept(error.into()))?;
    refused(test, destination)?;
    test.peer_addr()
        .map(|_peer| ())
        .map_err(|_unconnected| ProofError::NotSteered(destination))
}

fn is_same(accepted: &Socket, test: &Socket, destination: SocketAddr) -> bool {
    let peer = accepted.peer_addr().ok().and_then(|addr| addr.as_socket());
    let local = accepted.local_addr().ok().and_then(|addr| addr.as_socket());
    let from = test.local_addr().ok().and_then(|addr| addr.as_socket());
    peer.is_some() && peer == from && local == Some(destination)
}

fn refused(test: &Socket, destination: SocketAddr) -> Result<(), ProofError> {
    match test.take_error() {
        Ok(None) => Ok(()),
        Ok(Some(error)) | Err(error) => Err(ProofError::Connect(destination, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_address_avoids_what_is_not_captured() {
        let nets =
            |nets: &[&str]| -> Vec<IpNet> { nets.iter().map(|net| net.parse().unwrap()).collect() };
        for (skipped, expected) in [
            (nets(&[]), Some("192.0.2.1:9")),
            (nets(&["192.0.2.0/24"]), Some("198.51.100.1:9")),
            (nets(&["0.0.0.0/0"]), None),
        ] {
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(destination(Family::V4, &skipped), expected, "{skipped:?}");
        }
    }

    #[test]
    fn an_accepted_connection_is_recognised_by_both_its_ends() {
        let listener = sockets::dial(Family::V4).unwrap();
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&address.into()).unwrap();
        sockets::listen(&listener).unwrap();
        let destination = listener.local_addr().unwrap().as_socket().unwrap();
        let stranger = sockets::dial(Family::V4).unwrap();
        stranger.connect(&destination.into()).ok();
        let test = sockets::dial(Family::V4).unwrap();
        test.connect(&destination.into()).ok();
        finish(&test, destination, &listener).unwrap();
        let error = finish(&test, destination, &listener).unwrap_err();
        assert!(matches!(error, ProofError::NotSteered(_)), "{error}");
    }
}
