//! Reads the server name out of a TLS hello.
//!
//! By hand, because the rules are linkerd2-proxy's and not rustls': only the first record counts,
//! and hellos that rustls would refuse (old versions, foreign extensions) have to be passed on
//! with their name.

/// A longer record is not ours.
const MAX_RECORD: usize = 8192;

/// What a piece of the beginning of a connection says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'bytes> {
    /// More is needed.
    Incomplete,
    /// No hello, whatever follows.
    NotTls,
    /// A hello, and the name in it.
    Hello(Option<&'bytes str>),
}

/// Looks at what has come so far.
pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let plausible = [
        |byte| byte == 22,
        |byte| byte == 3,
        |byte| byte == 1 || byte == 3,
    ];
    if !plausible
        .iter()
        .zip(bytes)
        .all(|(check, byte)| check(*byte))
    {
        return Parsed::NotTls;
    }
    let &[_, _, _, high, low, ref rest @ ..] = bytes else {
        return Parsed::Incomplete;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > MAX_RECORD {
        return Parsed::NotTls;
    }
    match rest.first() {
        None => return Parsed::Incomplete,
        Some(1) => {}
        Some(_) => return Parsed::NotTls,
    }
    match rest.get(..length) {
        None => Parsed::Incomplete,
        Some(record) => match client_hello(Reader(record)) {
            None => Parsed::NotTls,
            Some(name) => Parsed::Hello(name),
        },
    }
}

/// `None` is no hello; `Some(None)` is one without a usable name.
fn client_hello(mut record: Reader<'_>) -> Option<Option<&str>> {
    record.take(1)?;
    // 24 bits of length; nobody sends a hello of 64 KiB, and it would not fit the record.
    if record.take(1)? != [0] {
        return None;
    }
    let mut hello = record.vector16()?;
    if hello.take(2)? != [3, 3] {
        return None;
    }
    hello.take(32)?;
    hello.vector8()?;
    hello.vector16()?;
    hello.vector8()?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = hello.vector16()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let extension = extensions.vector16()?;
        if kind == 0 {
            return Some(server_name(extension));
        }
    }
    Some(None)
}

fn server_name(mut extension: Reader<'_>) -> Option<&str> {
    let mut names = extension.vector16()?;
    if names.take(1)? != [0] {
        return None;
    }
    let name = std::str::from_utf8(names.vector16()?.0).ok()?;
    let is_name = !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    is_name.then_some(name)
}

struct Reader<'bytes>(&'bytes [u8]);

impl<'bytes> Reader<'bytes> {
    fn take(&mut self, count: usize) -> Option<&'bytes [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn vector8(&mut self) -> Option<Self> {
        let length = usize::from(*self.take(1)?.first()?);
        self.take(length).map(Self)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = usize::from(self.u16()?);
        self.take(length).map(Self)
    }
}
