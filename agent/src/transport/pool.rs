//! HTTP connections of one pod to one target, on one worker.
//!
//! HTTP/1: idle connections in a stack, newest first, looked at when taken, dropped when idle for
//! three sweeps; no timer per connection. One goes back when its response has ended,
//! which a [`Loan`] in the response's body sees; a response that is dropped half-way takes its
//! connection with it. HTTP/2: exactly one connection, opened by the first who needs it while the
//! others wait. This is the seam behind which another HTTP engine may stand.
//!
//! Does not choose endpoints and repeats nothing that may have reached the peer.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use http::{Request, Response};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{
    body::Body,
    connector::{Connector, OpenError},
    counted::Opened,
    exec::Exec,
    header::Session,
    health::Health,
    io::Io,
};

/// Sweeps after which an idle HTTP/1 connection is closed: at most 3 s, as Linkerd does.
const IDLE_SWEEPS: u32 = 3;
/// Sweeps after which the HTTP/2 connection is closed if no request took it. Streams that are
/// open go on to their end.
const SHARED_IDLE_SWEEPS: u32 = 60;
/// Idle HTTP/1 connections kept for one target.
const MAX_IDLE: usize = 10_000;
/// Windows of HTTP/2, as Linkerd sets them.
const STREAM_WINDOW: u32 = 65_535;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Longest header list that is taken in HTTP/2.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Connections of one pod to one target.
#[derive(Debug)]
pub struct Client {
    connector: Connector,
    tasks: TaskTracker,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Option<http2::SendRequest<Incoming>>>,
    /// Held while the HTTP/2 connection is being opened.
    opening: tokio::sync::Mutex<()>,
    sweeps: AtomicU32,
    /// Sweeps since a request has last taken the HTTP/2 connection.
    shared_unused: AtomicU32,
    health: Health,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Incoming>,
    since: u32,
}

/// A connection that a request may be sent on.
#[derive(Debug)]
pub struct Ready(Connection);

#[derive(Debug)]
enum Connection {
    Http1 {
        sender: http1::SendRequest<Incoming>,
        reused: bool,
        again: bool,
    },
    Http2(http2::SendRequest<Incoming>),
}

/// An HTTP/1 connection that is in use, until its response has ended.
#[derive(Debug)]
pub struct Loan {
    sender: http1::SendRequest<Incoming>,
    client: Arc<Client>,
}

/// How a request wants to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Travel {
    /// On an HTTP/1 connection that others may use after it.
    Http1,
    /// On an HTTP/1 connection of its own.
    Http1Once,
    /// On the HTTP/2 connection.
    Http2,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection: nothing was sent.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The connection ended before the response: the request may have reached the peer.
    #[error("no response")]
    Lost(#[source] hyper::Error),
}

impl Client {
    /// Makes a pool without connections. `tasks` takes the tasks that drive them, `recovered` is
    /// told when the target can be opened again after a failure.
    pub fn new(connector: Connector, tasks: TaskTracker, recovered: Arc<Notify>) -> Self {
        Self {
            connector,
            tasks,
            idle: Mutex::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            sweeps: AtomicU32::new(0),
            shared_unused: AtomicU32::new(0),
            health: Health::new(recovered),
        }
    }

    /// How connections are opened.
    pub const fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Whether the target can be opened, as far as is known.
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Finds or opens a connection.
    ///
    /// # Errors
    /// When none can be opened. [`Health`] knows of it.
    ///
    /// # Cancel safety
    /// A connection that is being opened is given up.
    pub async fn acquire(&self, travel: Travel) -> Result<Ready, OpenError> {
        let connection = match travel {
            Travel::Http2 => Connection::Http2(self.shared().await?),
            Travel::Http1 => match self.take_idle().await {
                Some(sender) => Connection::Http1 {
                    sender,
                    reused: true,
                    again: true,
                },
                None => self.open_http1(true).await?,
            },
            Travel::Http1Once => self.open_http1(false).await?,
        };
        Ok(Ready(connection))
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// A request that a closed connection gives back untouched is sent once more on a new one.
    ///
    /// # Errors
    /// When the connection breaks before the response.
    ///
    /// # Cancel safety
    /// The request is cancelled.
    pub async fn send(
        self: &Arc<Self>,
        on: Ready,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, SendError> {
        match on.0 {
            Connection::Http2(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => Ok(response.map(Body::from)),
                Err(mut error) => match error.take_message() {
                    Some(request) => {
                        let mut sender = self.shared().await?;
                        let sent = sender.send_request(request).await;
                        sent.map(|r| r.map(Body::from)).map_err(SendError::Lost)
                    }
                    None => Err(SendError::Lost(error.into_error())),
                },
            },
            Connection::Http1 {
                mut sender,
                reused,
                again,
            } => match sender.try_send_request(request).await {
                Ok(response) => Ok(self.lend(response, sender, again)),
                Err(mut error) => match error.take_message() {
                    Some(request) if reused => {
                        debug!("idle connection was closed, sending on a new one");
                        let Connection::Http1 { mut sender, .. } = self.open_http1(true).await?
                        else {
                            return Err(SendError::Lost(error.into_error()));
                        };
                        let response = sender.send_request(request).await;
                        let response = response.map_err(SendError::Lost)?;
                        Ok(self.lend(response, sender, true))
                    }
                    _ => Err(SendError::Lost(error.into_error())),
                },
            },
        }
    }

    /// Opens a connection for bytes.
    ///
    /// # Errors
    /// When there is none. [`Health`] knows of it.
    pub async fn open_bytes(&self) -> Result<(Io, Opened), OpenError> {
        let opened = self.connector.open(None).await;
        self.health.note(opened.is_ok());
        opened
    }

    /// Closes connections that were idle for long enough. Called once a second.
    pub fn sweep(&self) {
        let now = self.sweeps.fetch_add(1, Relaxed).wrapping_add(1);
        self.idle
            .lock()
            .retain(|idle| now.wrapping_sub(idle.since) < IDLE_SWEEPS && !idle.sender.is_closed());
        let mut shared = self.shared.lock();
        let unused = self.shared_unused.fetch_add(1, Relaxed);
        if unused >= SHARED_IDLE_SWEEPS
            || shared.as_ref().is_some_and(http2::SendRequest::is_closed)
        {
            *shared = None;
        }
    }

    /// Whether there is no connection that could be used again.
    pub fn is_idle(&self) -> bool {
        self.idle.lock().is_empty() && self.shared.lock().is_none()
    }

    /// Closes every connection as soon as it is not in use.
    pub fn close(&self) {
        self.idle.lock().clear();
        *self.shared.lock() = None;
    }

    /// The newest idle connection that can be used at once.
    async fn take_idle(&self) -> Option<http1::SendRequest<Incoming>> {
        loop {
            let sender = self.idle.lock().pop()?.sender;
            if sender.is_ready() {
                return Some(sender);
            }
            if sender.is_closed() {
                continue;
            }
            // The response has ended, and the connection's own task has yet to see it. It is
            // awake already, so that it runs before this one goes on.
            tokio::task::yield_now().await;
            if sender.is_ready() {
                return Some(sender);
            }
            // Still at work on the last request's body: not to be used by another.
        }
    }

    async fn open_http1(&self, again: bool) -> Result<Connection, OpenError> {
        let opened = async {
            let io = self.connector.open_counted(Session::Http1).await?;
            http1::handshake(TokioIo::new(io))
                .await
                .map_err(|_error| self.broken())
        }
        .await;
        self.health.note(opened.is_ok());
        let (sender, connection) = opened?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "HTTP/1 connection ended");
            }
        });
        Ok(Connection::Http1 {
            sender,
            reused: false,
            again,
        })
    }

    async fn shared(&self) -> Result<http2::SendRequest<Incoming>, OpenError> {
        if let Some(sender) = self.open_shared() {
            return Ok(sender);
        }
        let failures = self.health.failures();
        let _only_one = self.opening.lock().await;
        if let Some(sender) = self.open_shared() {
            return Ok(sender);
        }
        if self.health.failures() != failures {
            // Whoever was first has just failed; the others need not try one after the other.
            let addr = self.connector.target.addr;
            return Err(OpenError::BackingOff { addr });
        }
        let opened = async {
            let io = self.connector.open_counted(Session::Http2).await?;
            http2::Builder::new(Exec::new(self.tasks.clone()))
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADER_LIST)
                .handshake(TokioIo::new(io))
                .await
                .map_err(|_error| self.broken())
        }
        .await;
        self.health.note(opened.is_ok());
        let (sender, connection) = opened?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "HTTP/2 connection ended");
            }
        });
        *self.shared.lock() = Some(sender.clone());
        Ok(sender)
    }

    fn open_shared(&self) -> Option<http2::SendRequest<Incoming>> {
        self.shared_unused.store(0, Relaxed);
        let shared = self.shared.lock();
        shared
            .as_ref()
            .filter(|sender| !sender.is_closed())
            .cloned()
    }

    fn broken(&self) -> OpenError {
        OpenError::Io {
            addr: self.connector.target.addr,
            source: std::io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// Ties the connection to the response that is on it.
    fn lend(
        self: &Arc<Self>,
        response: Response<Incoming>,
        sender: http1::SendRequest<Incoming>,
        again: bool,
    ) -> Response<Body> {
        if !again {
            return response.map(Body::from);
        }
        let loan = Loan {
            sender,
            client: Arc::clone(self),
        };
        response.map(|body| {
            if body.is_end_stream() {
                loan.give_back();
                Body::from(body)
            } else {
                Body::lent(body, loan)
            }
        })
    }
}

impl Loan {
    /// Gives the connection back: its response has ended. To drop a loan closes the connection.
    pub fn give_back(self) {
        let Self { sender, client } = self;
        if sender.is_closed() {
            return;
        }
        let mut idle = client.idle.lock();
        if idle.len() < MAX_IDLE {
            let since = client.sweeps.load(Relaxed);
            idle.push(Idle { sender, since });
        }
    }
}
