//! The smallest HTTP/1.1 client that tests need: one request, one connection, plain.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// A response that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Reply {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter();
        values
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Time for each step of a request.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends `GET path` and reads the answer to the end of the connection.
///
/// # Errors
/// When there is no connection, no answer in time, or one that is no HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<Reply> {
    get_with(address, path, &[])
}

/// As [`get`], with further headers.
///
/// # Errors
/// As [`get`].
pub fn get_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("connect to {address}"))?;
    exchange(stream, &address.to_string(), path, headers)
        .with_context(|| format!("GET http://{address}{path}"))
}

/// Sends `GET path` on a connection and reads the answer to its end.
///
/// # Errors
/// As [`get`].
pub fn exchange(
    mut stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Reply> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// Parses a whole response.
///
/// # Errors
/// When it is no HTTP/1 response.
pub fn parse(bytes: &[u8]) -> Result<Reply> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).context("parse response")?;
    ensure!(parsed.is_complete(), "response ends within its head");
    let headers: Vec<(String, String)> = response
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        })
        .collect();
    let rest = &bytes[parsed.unwrap()..];
    let is_chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value.contains("chunked"));
    let body = if is_chunked {
        dechunk(rest)?
    } else {
        rest.to_vec()
    };
    Ok(Reply {
        status: response.code.context("no status code")?,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        let end = end.context("chunk without size")?;
        let size = std::str::from_utf8(&rest[..end])?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(size).trim(), 16)?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(body);
        }
        ensure!(rest.len() >= size + 2, "chunk of {size} bytes is cut");
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_with_length_and_in_chunks_are_read() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi";
        let reply = parse(plain).unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, "hi"));
        assert_eq!(reply.header("x-a"), Some("b"));

        let chunked = b"HTTP/1.1 404 No\r\ntransfer-encoding: chunked\r\n\r\n\
            2\r\nhi\r\n3;x=y\r\n yo\r\n0\r\n\r\n";
        let reply = parse(chunked).unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (404, "hi yo"));
        assert!(parse(b"HTTP/1.1 200").is_err());
    }
}
