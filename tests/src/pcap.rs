//! Reads what tcpdump wrote: frames, TCP streams put together again, and what their TLS hellos say.
//!
//! Only what the suites need: classic pcap with Ethernet frames, IPv4 and IPv6 without extension
//! headers, TCP. Anything else counts as a frame and is searched as bytes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Captured frames.
#[derive(Debug, Default)]
pub struct Frames {
    frames: Vec<Vec<u8>>,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Who sent.
    pub from: SocketAddr,
    /// Who received.
    pub to: SocketAddr,
    /// What was sent, in order; ends before the first byte that was not captured.
    pub bytes: Vec<u8>,
    /// Whether its first byte was captured.
    pub from_start: bool,
}

/// What the hellos of one TLS connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Where the client connected to.
    pub server: SocketAddr,
    /// Name in the client's hello.
    pub sni: Option<String>,
    /// Version that the server chose; `0x0304` is TLS 1.3. None if no server hello was seen.
    pub version: Option<u16>,
}

impl Frames {
    /// Parses a capture file; a frame cut at the end is left out.
    ///
    /// # Errors
    /// When it is no pcap with Ethernet frames.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let number = |at: usize| {
            let bytes = file.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let magic = number(0).context("capture is empty")?;
        ensure!(
            matches!(magic, 0xa1b2_c3d4 | 0xa1b2_3c4d),
            "no little-endian pcap: {magic:#x}"
        );
        ensure!(number(20) == Some(1), "link type is not Ethernet");
        let mut frames = Vec::new();
        let mut at = 24;
        while let Some(length) = number(at + 8) {
            let start = at + 16;
            let end = start + usize::try_from(length)?;
            match file.get(start..end) {
                Some(frame) => frames.push(frame.to_vec()),
                None => break,
            }
            at = end;
        }
        Ok(Self { frames })
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing was captured.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the bytes are in a frame, or cross frames of a TCP stream.
    pub fn contains(&self, needle: &[u8]) -> bool {
        let in_frame = self.frames.iter().any(|frame| find(frame, needle));
        in_frame
            || self
                .streams()
                .iter()
                .any(|stream| find(&stream.bytes, needle))
    }

    /// TCP segments without payload but with SYN and without ACK: who tried to reach whom.
    pub fn connection_attempts(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let segments = self.frames.iter().filter_map(|frame| segment(frame));
        segments
            .filter(|segment| segment.flags & 0x12 == 0x02)
            .map(|segment| (segment.from, segment.to))
            .collect()
    }

    /// TCP streams, one for each direction that carried bytes.
    pub fn streams(&self) -> Vec<Stream> {
        let mut parts: BTreeMap<(SocketAddr, SocketAddr), Vec<Segment<'_>>> = BTreeMap::new();
        for segment in self.frames.iter().filter_map(|frame| segment(frame)) {
            let key = (segment.from, segment.to);
            parts.entry(key).or_default().push(segment);
        }
        let streams = parts.into_iter().map(|((from, to), segments)| Stream {
            from,
            to,
            bytes: assemble(&segments),
            from_start: segments.iter().any(|segment| segment.flags & 0x02 != 0),
        });
        streams.filter(|stream| !stream.bytes.is_empty()).collect()
    }

    /// Connections whose first client bytes are a TLS hello.
    pub fn handshakes(&self) -> Vec<Handshake> {
        let streams = self.streams();
        let answer = |client: &Stream| {
            streams
                .iter()
                .find(|other| other.from == client.to && other.to == client.from)
        };
        streams
            .iter()
            .filter_map(|stream| {
                let hello = client_hello(&stream.bytes)?;
                Some(Handshake {
                    server: stream.to,
                    sni: hello.sni,
                    version: answer(stream).and_then(|answer| server_version(&answer.bytes)),
                })
            })
            .collect()
    }

    /// TCP streams that were captured from their start, carried bytes and do not begin with TLS.
    pub fn plaintext_streams(&self) -> Vec<Stream> {
        let mut streams = self.streams();
        streams.retain(|stream| {
            stream.from_start && !matches!(stream.bytes.first(), Some(0x14..=0x17))
        });
        streams
    }
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(14..)?;
    let (from, to, tcp) = match u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]) {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        flags: *tcp.get(13)?,
        payload: tcp.get(header..)?,
    })
}

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let address = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    (packet.get(9) == Some(&6)).then_some(())?;
    // Segments that the sender's device is to cut have a length of zero.
    let end = if total == 0 { packet.len() } else { total };
    Some((address(12)?, address(16)?, packet.get(header..end)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let address = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    (packet.get(6) == Some(&6)).then_some(())?;
    let end = if length == 0 {
        packet.len()
    } else {
        40 + length
    };
    Some((address(8)?, address(24)?, packet.get(40..end)?))
}

/// Puts segments in order from the first SYN, or else from the lowest number seen first.
fn assemble(segments: &[Segment<'_>]) -> Vec<u8> {
    let syn = segments.iter().find(|segment| segment.flags & 0x02 != 0);
    let first = segments.iter().find(|segment| !segment.payload.is_empty());
    let start = match (syn, first) {
        (Some(syn), _) => syn.sequence.wrapping_add(1),
        (None, Some(first)) => first.sequence,
        (None, None) => return Vec::new(),
    };
    let mut parts: Vec<(usize, &[u8])> = segments
        .iter()
        .filter(|segment| !segment.payload.is_empty())
        .map(|segment| {
            (
                segment.sequence.wrapping_sub(start) as usize,
                segment.payload,
            )
        })
        .collect();
    parts.sort_by_key(|(offset, _)| *offset);
    let mut bytes: Vec<u8> = Vec::new();
    for (offset, payload) in parts {
        match bytes.len().checked_sub(offset) {
            None => break,
            Some(known) if known < payload.len() => bytes.extend_from_slice(&payload[known..]),
            Some(_retransmitted) => {}
        }
    }
    bytes
}

struct ClientHello {
    sni: Option<String>,
}

fn client_hello(bytes: &[u8]) -> Option<ClientHello> {
    let extensions = hello_extensions(bytes, 1)?;
    let sni = extensions.iter().find(|(kind, _)| *kind == 0);
    let sni = sni.and_then(|(_, body)| {
        // List length, type 0 (host name), name length, name.
        let name = body.get(5..)?;
        Some(String::from_utf8_lossy(name).into_owned())
    });
    Some(ClientHello { sni })
}

fn server_version(bytes: &[u8]) -> Option<u16> {
    let extensions = hello_extensions(bytes, 2)?;
    let chosen = extensions.iter().find(|(kind, _)| *kind == 43);
    match chosen.map(|(_, body)| body.as_slice()) {
        Some([high, low]) => Some(u16::from_be_bytes([*high, *low])),
        // Without the extension, the version is the one in the hello itself.
        _ => Some(u16::from_be_bytes([*bytes.get(9)?, *bytes.get(10)?])),
    }
}

/// Extensions of a ClientHello (kind 1) or ServerHello (kind 2) at the start of a stream.
fn hello_extensions(bytes: &[u8], kind: u8) -> Option<Vec<(u16, Vec<u8>)>> {
    let message = handshake_message(bytes)?;
    let mut rest = Reader(&message);
    (rest.byte()? == kind).then_some(())?;
    rest.take(3 + 2 + 32)?;
    let session = usize::from(rest.byte()?);
    rest.take(session)?;
    if kind == 1 {
        let suites = rest.number()?;
        rest.take(suites)?;
        let compressions = usize::from(rest.byte()?);
        rest.take(compressions)?;
    } else {
        rest.take(2 + 1)?;
    }
    let length = rest.number()?;
    let mut list = Reader(rest.take(length)?);
    let mut extensions = Vec::new();
    while let Some(kind) = list.number() {
        let length = list.number()?;
        extensions.push((u16::try_from(kind).ok()?, list.take(length)?.to_vec()));
    }
    Some(extensions)
}

/// The first handshake message, which may span several records.
fn handshake_message(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    let mut records = Reader(bytes);
    loop {
        (records.byte()? == 22).then_some(())?;
        (records.byte()? == 3).then_some(())?;
        records.byte()?;
        let length = records.number()?;
        message.extend_from_slice(records.take(length)?);
        if let Some(&[_, a, b, c]) = message.get(..4) {
            let whole = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if message.len() >= whole {
                message.truncate(whole);
                return Some(message);
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(2)?;
        Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }
}

/// Whether the needle is in the haystack.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty()
        && haystack
            .windows(needle.len())
            .any(|window| window == needle)
}

/// Checks that every connection to these ports is TLS 1.3 and gives how many there were.
///
/// # Errors
/// Names the first connection that is not.
pub fn all_tls13(frames: &Frames, ports: &[u16]) -> Result<usize> {
    let mut seen = 0;
    for stream in frames.plaintext_streams() {
        if ports.contains(&stream.to.port()) {
            let start = String::from_utf8_lossy(&stream.bytes[..stream.bytes.len().min(60)]);
            bail!("{} to {} in clear: {start:?}", stream.from, stream.to);
        }
    }
    for handshake in frames.handshakes() {
        if !ports.contains(&handshake.server.port()) {
            continue;
        }
        ensure!(
            handshake.version.is_none_or(|version| version == 0x0304),
            "{handshake:?} is not TLS 1.3"
        );
        seen += usize::from(handshake.version.is_some());
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet frame with a TCP segment.
    fn frame(from: u16, to: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        let total = u16::try_from(40 + payload.len()).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
            file.extend(word.to_le_bytes());
        }
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            for word in [0, 0, length, length] {
                file.extend(word.to_le_bytes());
            }
            file.extend(frame);
        }
        file
    }

    #[test]
    fn streams_are_put_together_over_reordering_and_retransmission() {
        let file = pcap(&[
            frame(9, 80, 99, 0x02, b""),
            frame(9, 80, 104, 0x18, b"o wor"),
            frame(9, 80, 100, 0x18, b"hel"),
            frame(9, 80, 103, 0x18, b"l"),
            frame(9, 80, 103, 0x18, b"lo"),
            frame(9, 80, 109, 0x18, b"ld"),
        ]);
        let frames = Frames::parse(&file).unwrap();
        assert_eq!(frames.streams()[0].bytes, b"hello world");
        assert!(frames.contains(b"hello") && !frames.contains(b"bye"));
        assert_eq!(frames.connection_attempts().len(), 1);
        assert_eq!(frames.plaintext_streams().len(), 1);
        assert!(all_tls13(&frames, &[80]).is_err());
    }

    #[test]
    fn the_version_of_a_real_handshake_is_read() {
        let (client, server) = crate::mesh_tls::tests::hello_bytes();
        let file = pcap(&[
            frame(9, 80, 0, 0x02, b""),
            frame(80, 9, 0, 0x12, b""),
            frame(9, 80, 1, 0x18, &client),
            frame(80, 9, 1, 0x18, &server),
        ]);
        let frames = Frames::parse(&file).unwrap();
        let handshake = Handshake {
            server: "10.0.0.2:80".parse().unwrap(),
            sni: Some("web.shop.serviceaccount.identity.linkerd.cluster.local".to_owned()),
            version: Some(0x0304),
        };
        // The frame helper gives both directions the same addresses but not the same ports.
        assert_eq!(frames.handshakes()[0].sni, handshake.sni);
        assert_eq!(server_version(&server), handshake.version);
    }

    #[test]
    fn a_cut_file_gives_the_frames_before_the_cut() {
        let mut file = pcap(&[frame(1, 2, 0, 0, b"a"), frame(1, 2, 1, 0, b"b")]);
        file.truncate(file.len() - 1);
        assert_eq!(Frames::parse(&file).unwrap().len(), 1);
        assert!(Frames::parse(b"").is_err());
    }
}
