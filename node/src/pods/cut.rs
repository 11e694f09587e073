//! Ends TCP connections of a pod from outside, by SOCK_DESTROY of the kernel's socket diagnostics:
//! both ends are told by a reset, as when a peer has crashed.
//!
//! Runs on the thread that is inside the pod's network namespace. Needs CAP_NET_ADMIN there and
//! CONFIG_INET_DIAG_DESTROY.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::legacy::Connection;

/// Ends connections; returns how many were there.
///
/// # Errors
/// When the kernel cannot do that.
pub(super) fn cut(connections: &[Connection]) -> io::Result<usize> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut count = 0;
    for connection in connections {
        if destroy(&socket, connection.local, connection.remote)? {
            count += 1;
        }
    }
    Ok(count)
}

/// Whether the connection was there.
fn destroy(socket: &OwnedFd, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    send(socket, &request(local, remote), SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = recv(socket.as_fd(), &mut answer, RecvFlags::empty())?;
    // nlmsghdr, then the error number of nlmsgerr.
    let errno = answer
        .get(HEADER..HEADER + 4)
        .filter(|_| length >= HEADER + 4)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
        .map_or(0, i32::from_ne_bytes);
    match -errno {
        0 => Ok(true),
        libc::ENOENT => Ok(false),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

const HEADER: usize = 16;

/// `struct nlmsghdr` and `struct inet_diag_req_v2`, see include/uapi/linux/inet_diag.h.
fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const SOCK_DESTROY: u16 = 21;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const LENGTH: u32 = 72;
    const ANY_STATE: u32 = u32::MAX;
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    const TCP: u8 = 6;

    let (local, remote) = (canonical(local), canonical(remote));
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut request = Vec::with_capacity(72);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([u8::try_from(family).unwrap_or_default(), TCP, 0, 0]);
    request.extend(ANY_STATE.to_ne_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    request.extend(octets(local.ip()));
    request.extend(octets(remote.ip()));
    request.extend([0; 4]);
    request.extend(NO_COOKIE);
    request
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_length_they_say() {
        for address in ["10.0.0.1:80", "[fd00::1]:80", "[::ffff:10.0.0.1]:80"] {
            let address = address.parse().unwrap();
            assert_eq!(request(address, address).len(), 72);
        }
    }
}
