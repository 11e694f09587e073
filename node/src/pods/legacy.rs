//! TCP connections of a pod as the kernel lists them, for what a late enrolment finds: those that
//! were open before stay outside the mesh until they close, and are reported until then.
//!
//! Read from `/proc/thread-self/net/tcp` and `tcp6` on the thread that is inside the namespace.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A pod that holds more is counted up to here.
const MOST: usize = 65_536;

/// One connection of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The end inside the namespace.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Whether the connection is still being opened from inside.
    pub is_opening: bool,
}

/// Connections that are open or being opened, without those that stay inside the pod.
///
/// # Errors
/// When the lists cannot be read.
pub fn list(own: &[IpAddr]) -> io::Result<HashSet<Connection>> {
    let all = all()?;
    let leaving = all.into_iter().filter(|connection| leaves(connection, own));
    Ok(leaving.take(MOST).collect())
}

/// Captured outbound connections that an agent holds: their local address is the original
/// destination, which is none of the pod's.
///
/// # Errors
/// When the lists cannot be read.
pub fn captured(own: &[IpAddr]) -> io::Result<Vec<Connection>> {
    let is_captured = |connection: &Connection| {
        let local = connection.local.ip().to_canonical();
        !local.is_loopback() && !own.contains(&local)
    };
    let mut captured = all()?;
    captured.retain(is_captured);
    Ok(captured)
}

fn all() -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::read_to_string(path) {
            Ok(text) => found.extend(text.lines().skip(1).filter_map(parse)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // no IPv6
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn leaves(connection: &Connection, own: &[IpAddr]) -> bool {
    let remote = connection.remote.ip().to_canonical();
    !remote.is_loopback() && !own.contains(&remote)
}

/// A line is `sl local_address rem_address st …`, with states as in include/net/tcp_states.h.
fn parse(line: &str) -> Option<Connection> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    let is_opening = match fields.next()? {
        "01" | "04" | "05" | "08" => false,
        "02" => true,
        _ => return None,
    };
    Some(Connection {
        local,
        remote,
        is_opening,
    })
}

/// An address is 32-bit words in the machine's order, each as eight hexadecimal digits.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = ip.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_understood() {
        let established = "   1: 0200D30A:9C40 0A00600A:0050 01 00000000:00000000 00:00000000 0 0";
        assert_eq!(
            parse(established),
            Some(Connection {
                local: "10.211.0.2:40000".parse().unwrap(),
                remote: "10.96.0.10:80".parse().unwrap(),
                is_opening: false,
            })
        );
        let mapped =
            "0: 0000000000000000FFFF00000200D30A:9C40 0000000000000000FFFF00000A00600A:0050 02 x";
        let parsed = parse(mapped).unwrap();
        assert_eq!(parsed.remote, "10.96.0.10:80".parse().unwrap());
        assert!(parsed.is_opening);
        for line in ["", "x", "0: zz:1 0:0 01", "0: 0100007F:1 00000000:0 0A"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn what_stays_inside_the_pod_is_not_counted() {
        let own = ["10.0.0.1".parse().unwrap()];
        for (remote, expected) in [
            ("10.0.0.1:80", false),
            ("127.0.0.1:80", false),
            ("10.0.0.2:80", true),
        ] {
            let connection = Connection {
                local: "10.0.0.1:4000".parse().unwrap(),
                remote: remote.parse().unwrap(),
                is_opening: false,
            };
            assert_eq!(leaves(&connection, &own), expected, "{remote}");
        }
    }
}
