//! Makes the sockets that are lent: listeners of a pod, and unconnected sockets to dial with.
//!
//! Every function here runs on the thread that is inside the pod's network namespace, because a
//! socket stays in the namespace it was made in. Tagging is the caller's part.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use socket2::{Domain, Protocol, Socket, Type};
use weft_api::model::Settings;

use crate::kernel::ListenerSlot;

/// Where the outbound listener is bound, on loopback. Connections are steered to it whatever port
/// they are for, so the number is only seen in `ss -l`.
const OUTBOUND_PORT: u16 = 4140;

/// Connections that may wait to be accepted: what arrives while an agent is being replaced.
const BACKLOG: i32 = 4096;

/// One of the listeners of a pod.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Transparent, on IPv4 loopback.
    OutboundV4,
    /// Transparent, on IPv6 loopback.
    OutboundV6,
    /// On the pod's IPv4 addresses.
    InboundV4,
    /// On the pod's IPv6 addresses.
    InboundV6,
    /// The pod's admin port, IPv4.
    AdminV4,
    /// The pod's admin port, IPv6.
    AdminV6,
}

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Ports of the listeners that others reach by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of the inbound listener.
    pub inbound: u16,
    /// Of the admin listener.
    pub admin: u16,
}

impl From<&Settings> for Ports {
    fn from(settings: &Settings) -> Self {
        Self {
            inbound: settings.inbound_port,
            admin: settings.admin_port,
        }
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::OutboundV4,
        Self::OutboundV6,
        Self::InboundV4,
        Self::InboundV6,
        Self::AdminV4,
        Self::AdminV6,
    ];

    /// The listener's address family.
    pub const fn family(self) -> Family {
        match self {
            Self::OutboundV4 | Self::InboundV4 | Self::AdminV4 => Family::V4,
            Self::OutboundV6 | Self::InboundV6 | Self::AdminV6 => Family::V6,
        }
    }

    /// Where the kernel programs look for it; the admin port is reached without steering.
    pub const fn slot(self) -> Option<ListenerSlot> {
        match self {
            Self::OutboundV4 => Some(ListenerSlot::Outbound4),
            Self::OutboundV6 => Some(ListenerSlot::Outbound6),
            Self::InboundV4 => Some(ListenerSlot::Inbound4),
            Self::InboundV6 => Some(ListenerSlot::Inbound6),
            Self::AdminV4 | Self::AdminV6 => None,
        }
    }

    /// Name for logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutboundV4 => "outbound-v4",
            Self::OutboundV6 => "outbound-v6",
            Self::InboundV4 => "inbound-v4",
            Self::InboundV6 => "inbound-v6",
            Self::AdminV4 => "admin-v4",
            Self::AdminV6 => "admin-v6",
        }
    }

    /// Where the listener is bound.
    pub fn address(self, ports: Ports) -> SocketAddr {
        match self {
            Self::OutboundV4 => (Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into(),
            Self::OutboundV6 => (Ipv6Addr::LOCALHOST, OUTBOUND_PORT).into(),
            Self::InboundV4 => (Ipv4Addr::UNSPECIFIED, ports.inbound).into(),
            Self::InboundV6 => (Ipv6Addr::UNSPECIFIED, ports.inbound).into(),
            Self::AdminV4 => (Ipv4Addr::UNSPECIFIED, ports.admin).into(),
            Self::AdminV6 => (Ipv6Addr::UNSPECIFIED, ports.admin).into(),
        }
    }

    const fn is_transparent(self) -> bool {
        matches!(self, Self::OutboundV4 | Self::OutboundV6)
    }
}

impl Family {
    const fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// Makes a bound socket that does not listen yet: it is to be tagged first, because what it
/// accepts inherits the tag.
///
/// # Errors
/// When the port is taken, or IP_TRANSPARENT is refused.
pub fn bound(kind: Kind, ports: Ports) -> io::Result<Socket> {
    let socket = dial(kind.family())?;
    socket.set_reuse_address(true)?;
    if kind.family() == Family::V6 {
        socket.set_only_v6(true)?;
    }
    if kind.is_transparent() {
        set_transparent(&socket, kind.family())?;
    }
    socket.bind(&kind.address(ports).into())?;
    Ok(socket)
}

/// Makes a bound socket listen.
///
/// # Errors
/// When the port is taken after all.
pub fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)
}

/// Makes an unconnected socket.
///
/// # Errors
/// When the process has too many descriptors, or the family is not there.
pub fn dial(family: Family) -> io::Result<Socket> {
    let socket = Socket::new(
        family.domain(),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    Ok(socket)
}

/// Cookie of the network namespace that a socket lives in.
///
/// # Errors
/// On kernels before 5.14.
#[expect(
    unsafe_code,
    reason = "neither rustix nor socket2 know SO_NETNS_COOKIE"
)]
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`, a plain
    // integer; the descriptor is open because it is borrowed.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Cookie of a socket: the same for all descriptors of one socket, never used again.
///
/// # Errors
/// When the descriptor is no socket.
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::net::sockopt::socket_cookie(socket)?)
}

/// Whether a socket still listens. A pod with CAP_NET_ADMIN can destroy it.
pub fn is_listening(socket: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}

fn set_transparent(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true),
        Family::V6 => socket.set_ip_transparent_v6(true),
    }
}

/// Number of connections that wait in a listener to be accepted.
///
/// # Errors
/// When the descriptor is no TCP socket.
#[expect(unsafe_code, reason = "neither rustix nor socket2 know TCP_INFO")]
pub fn waiting(listener: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: `tcp_info` is plain integers, for which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `info`.
    let outcome = unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    // For a listener the kernel puts the length of the accept queue there (tcp_get_info).
    if outcome == 0 {
        Ok(info.tcpi_unacked)
    } else {
        Err(io::Error::last_os_error())
    }
}
