//! Reads just enough of a packet to know its TCP connection.
//!
//! Knows IPv4 with options and IPv6 with up to [`EXTENSIONS`] extension headers. Everything else is
//! reported as what it is; the callers decide what that means (guard: drop, device: leave it to
//! socket lookup, which sees reassembled packets).

use weft_common::{Addr, Port};

/// Bytes of a packet, from its network header on.
pub trait Packet {
    /// Reads `N` words at the offset, each as it lies there; none when the packet ends before.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// Reads two bytes at the offset; none when the packet ends before.
    fn pair(&self, offset: u32) -> Option<[u8; 2]>;
}

/// Most IPv6 extension headers that are looked through; real traffic has one or two.
pub const EXTENSIONS: usize = 6;

const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A TCP segment.
    Tcp(Header),
    /// Not TCP.
    Other,
    /// Something that may be TCP and cannot be read: a fragment, too short, too many headers.
    Unclear,
}

/// What every segment is asked for; two reads find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Whether it asks for a new connection.
    pub is_syn: bool,
    ports: u32,
}

/// The connection that a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where from.
    pub source: Addr,
    /// Where to.
    pub destination: Addr,
    /// Port it comes from.
    pub source_port: Port,
    /// Port it goes to.
    pub destination_port: Port,
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Whether it asks for a new connection.
    pub is_syn: bool,
}

/// Reads what every segment is asked for.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Parsed {
    let (offset, is_v4) = match find(packet) {
        Ok(found) => found,
        Err(other) => return other,
    };
    let Some([ports, _, _, control]) = packet.words::<4>(offset) else {
        return Parsed::Unclear;
    };
    let [_, flags, ..] = control.to_ne_bytes();
    Parsed::Tcp(Header {
        is_v4,
        is_syn: flags & (SYN | ACK) == SYN,
        ports,
    })
}

/// Finds where the TCP header begins, and whether that is IPv4.
#[inline(always)]
fn find<P: Packet>(packet: &P) -> Result<(u32, bool), Parsed> {
    // RFC 791: the second word ends with flags and fragment offset, the third has the protocol.
    // RFC 8200: the second word has the next header.
    let Some([first, second, third, ..]) = packet.words::<5>(0) else {
        return Err(Parsed::Unclear);
    };
    let [first, ..] = first.to_ne_bytes();
    match first >> 4 {
        4 => {
            let [_, protocol, ..] = third.to_ne_bytes();
            if protocol != TCP {
                return Err(Parsed::Other);
            }
            if u32::from_be(second) & 0x1fff != 0 {
                return Err(Parsed::Unclear);
            }
            Ok((u32::from(first & 0xf) * 4, true))
        }
        6 => {
            let [_, _, next, _] = second.to_ne_bytes();
            Ok((skip_extensions(packet, next)?, false))
        }
        _ => Err(Parsed::Other),
    }
}

#[inline(always)]
fn skip_extensions<P: Packet>(packet: &P, mut next: u8) -> Result<u32, Parsed> {
    let mut offset = 40;
    for _ in 0..EXTENSIONS {
        match next {
            TCP => return Ok(offset),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                let Some([following, length]) = packet.pair(offset) else {
                    return Err(Parsed::Unclear);
                };
                // RFC 4302: the authentication header counts in units of 4 bytes, less 2.
                offset += match next {
                    AUTHENTICATION => (u32::from(length) + 2) * 4,
                    _ => (u32::from(length) + 1) * 8,
                };
                next = following;
            }
            FRAGMENT => return Err(Parsed::Unclear),
            _ => return Err(Parsed::Other),
        }
    }
    Err(Parsed::Unclear)
}

impl Header {
    /// Reads the addresses besides; none when the packet ends before.
    #[inline(always)]
    pub fn segment<P: Packet>(&self, packet: &P) -> Option<Segment> {
        let (source, destination) = match self.is_v4 {
            true => {
                let [source, destination] = packet.words(12)?;
                (
                    Addr::v4(source.to_ne_bytes()),
                    Addr::v4(destination.to_ne_bytes()),
                )
            }
            false => (
                Addr::from_words(packet.words(8)?),
                Addr::from_words(packet.words(24)?),
            ),
        };
        let [s0, s1, d0, d1] = self.ports.to_ne_bytes();
        Some(Segment {
            source,
            destination,
            source_port: [s0, s1],
            destination_port: [d0, d1],
            is_v4: self.is_v4,
            is_syn: self.is_syn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl Packet for Bytes {
        fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
            let offset = usize::try_from(offset).unwrap();
            let bytes = self.0.get(offset..offset + 4 * N)?;
            let mut words = bytes
                .chunks(4)
                .map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
            Some([(); N].map(|()| words.next().unwrap()))
        }

        fn pair(&self, offset: u32) -> Option<[u8; 2]> {
            let offset = usize::try_from(offset).unwrap();
            self.0.get(offset..offset + 2)?.try_into().ok()
        }
    }

    fn v4(options: u8, fragment: u16, protocol: u8, flags: u8) -> Bytes {
        let mut bytes = vec![0; 20];
        bytes[0] = 0x45 + options;
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[9] = protocol;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.resize(20 + usize::from(options) * 4, 0xee);
        bytes.extend(segment(flags));
        Bytes(bytes)
    }

    fn v6(headers: &[(u8, &[u8])], flags: u8) -> Bytes {
        let mut bytes = vec![0; 40];
        bytes[0] = 0x60;
        bytes[8..24].copy_from_slice(&[1; 16]);
        bytes[24..40].copy_from_slice(&[2; 16]);
        let mut place = 6;
        for (number, header) in headers {
            bytes[place] = *number;
            place = bytes.len();
            bytes.extend_from_slice(header);
        }
        bytes[place] = 6;
        bytes.extend(segment(flags));
        Bytes(bytes)
    }

    fn segment(flags: u8) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
        bytes[13] = flags;
        bytes
    }

    fn found(packet: &Bytes) -> Option<(Addr, Port, bool, bool)> {
        match parse(packet) {
            Parsed::Tcp(header) => {
                let tcp = header.segment(packet)?;
                assert_eq!(tcp.source_port, 12345_u16.to_be_bytes());
                Some((tcp.destination, tcp.destination_port, tcp.is_v4, tcp.is_syn))
            }
            Parsed::Other | Parsed::Unclear => None,
        }
    }

    #[test]
    fn ipv4_segments_are_read_behind_options() {
        for (options, flags, syn) in [
            (0, 0x02, true),
            (10, 0x02, true),
            (0, 0x12, false),
            (1, 0x10, false),
        ] {
            let expected = Some((Addr::v4([10, 0, 0, 2]), [0, 80], true, syn));
            assert_eq!(
                found(&v4(options, 0x4000, 6, flags)),
                expected,
                "{options} {flags}"
            );
        }
    }

    #[test]
    fn ipv6_segments_are_read_behind_extension_headers() {
        let eight = [0; 8];
        let sixteen = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let authentication = [0; 8];
        for headers in [
            vec![],
            vec![(HOP_BY_HOP, &eight[..])],
            vec![(ROUTING, &sixteen[..]), (DESTINATION_OPTIONS, &eight[..])],
            vec![(AUTHENTICATION, &authentication[..])],
        ] {
            let expected = Some((Addr::from_bytes([2; 16]), [0, 80], false, true));
            assert_eq!(found(&v6(&headers, 0x02)), expected, "{headers:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_unclear_and_other_protocols_are_other() {
        let eight = [0; 8];
        let mut short = v4(0, 0, 6, 2);
        short.0.truncate(30);
        for (name, packet, expected) in [
            ("second fragment", v4(0, 5, 6, 2), Parsed::Unclear),
            ("cut off", short, Parsed::Unclear),
            ("empty", Bytes(vec![]), Parsed::Unclear),
            ("UDP", v4(0, 0, 17, 0), Parsed::Other),
            ("ARP", Bytes([[0, 1, 8, 0]; 7].concat()), Parsed::Other),
            (
                "IPv6 fragment",
                v6(&[(FRAGMENT, &eight)], 2),
                Parsed::Unclear,
            ),
            (
                "many headers",
                v6(&[(HOP_BY_HOP, &eight[..]); 7], 2),
                Parsed::Unclear,
            ),
        ] {
            assert_eq!(parse(&packet), expected, "{name}");
        }
    }
}
