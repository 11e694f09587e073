//! Load from inside a pod while the mesh is being changed: starts the program `hammer` there and
//! reads what it counted.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{eventually::eventually, pod::Pod, process::Process, world};

/// What errors of connections that were not had begin with.
pub const CONNECT: &str = "no connection";

/// What the askers saw so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that have ended.
    pub attempts: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those of them that got no connection.
    pub refused: u64,
    /// What went wrong, the first few times.
    pub errors: Vec<String>,
    /// Longest time that one took, in milliseconds.
    pub longest_ms: u64,
    /// Whether this is the last line.
    pub done: bool,
}

impl Report {
    /// Counts one request.
    pub fn record(&mut self, took: Duration, answer: Result<()>) {
        self.attempts += 1;
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.longest_ms = self.longest_ms.max(took);
        if let Err(error) = answer {
            self.failed += 1;
            self.refused += u64::from(format!("{error:#}").starts_with(CONNECT));
            if self.errors.len() < 10 {
                self.errors.push(format!("{error:#} after {took} ms"));
            }
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Hammer {
    process: Process,
}

impl Hammer {
    /// Starts a load from a pod on a server, with further arguments of the program.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(pod: &Pod, name: &str, target: SocketAddr, args: &[&str]) -> Result<Self> {
        let program = crate::node::binary(&world::programs()?, "hammer")?;
        let launch = pod
            .launch(program)
            .arg(target.to_string())
            .args(args)
            .keep_stdin();
        Ok(Self {
            process: pod.spawn(name, launch)?,
        })
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When it has printed nothing yet.
    pub fn report(&self) -> Result<Report> {
        let log = self.process.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let last = whole.lines().next_back().context("no report yet")?;
        serde_json::from_str(last).with_context(|| format!("report {last:?}"))
    }

    /// Waits until so many more requests have ended.
    ///
    /// # Errors
    /// When they do not.
    pub fn more(&self, count: u64) -> Result<()> {
        let start = eventually("first report of the load", || self.report())?.attempts;
        eventually(&format!("{count} more requests"), || {
            let report = self.report()?;
            ensure!(report.attempts >= start + count, "{report:?}");
            Ok(())
        })
    }

    /// Waits until so many more requests have ended, and demands that none has failed so far.
    ///
    /// # Errors
    /// When one has: `phase` says when it was noticed.
    pub fn more_without_failure(&self, count: u64, phase: &str) -> Result<()> {
        self.more(count)?;
        let report = self.report()?;
        ensure!(report.failed == 0, "{phase}: {report:?}");
        Ok(())
    }

    /// Ends the load and gives the result.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<Report> {
        self.process.close_stdin();
        self.process.wait(Duration::from_secs(60))?;
        let report = self.report()?;
        ensure!(report.done, "load ended early: {}", self.process.tail(3));
        Ok(report)
    }

    /// Ends the load and demands that no request has failed.
    ///
    /// # Errors
    /// When one has.
    pub fn stop_without_failure(self) -> Result<Report> {
        let report = self.stop()?;
        ensure!(report.attempts > 0, "the load asked nothing");
        ensure!(
            report.failed == 0,
            "{} of {} requests failed: {:?}",
            report.failed,
            report.attempts,
            report.errors
        );
        Ok(report)
    }
}

/// One HTTP/1.1 connection that is kept open between requests.
#[derive(Debug)]
pub struct Speaker {
    stream: TcpStream,
    host: String,
}

impl Speaker {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not answer in time.
    pub fn connect(address: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit).context(CONNECT)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            host: address.to_string(),
        })
    }

    /// Sends `GET path`; gives the status, and whether the connection may be used again.
    ///
    /// # Errors
    /// When the connection breaks or what comes back is no HTTP with a content length.
    pub fn ask(&mut self, path: &str) -> Result<(u16, bool)> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.stream.write_all(request.as_bytes()).context("write")?;
        let mut bytes = Vec::new();
        let mut part = [0; 8192];
        loop {
            let count = self.stream.read(&mut part).context("read")?;
            if count == 0 {
                bail!("closed after {} bytes of an answer", bytes.len());
            }
            bytes.extend_from_slice(&part[..count]);
            if let Some(answer) = whole_answer(&bytes)? {
                return Ok(answer);
            }
        }
    }
}

/// Status and persistence of the answer, once all of it is there.
fn whole_answer(bytes: &[u8]) -> Result<Option<(u16, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).context("parse")? else {
        return Ok(None);
    };
    let value = |name: &str| {
        let mut found = response.headers.iter();
        let header = found.find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(header.value).to_ascii_lowercase())
    };
    let is_whole = match (value("content-length"), value("transfer-encoding")) {
        (Some(length), _) => bytes.len() >= head + length.trim().parse::<usize>()?,
        (None, Some(_chunked)) => bytes.ends_with(b"0\r\n\r\n"),
        (None, None) => bail!("answer without length"),
    };
    let stays = value("connection").is_none_or(|value| value != "close");
    let status = response.code.context("no status code")?;
    Ok(is_whole.then_some((status, stays)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close\r\n\r\n";
        for (text, expected) in [
            ("HTTP/1.1 200".to_owned(), None),
            (format!("{head}ab"), None),
            (format!("{head}abc"), Some((200, false))),
            (
                "HTTP/1.1 500 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
                Some((500, true)),
            ),
        ] {
            assert_eq!(whole_answer(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }
}
