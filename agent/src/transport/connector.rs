//! Opens connections to one endpoint the way it wants to be reached.
//!
//! Plain, mesh TLS on the endpoint's own port, or mesh TLS on the peer's proxy port with a
//! transport header that names the real one. Sockets are lent, the certificate is the pod's.

use std::{io, net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt as _, time::timeout};

use super::{
    counted::{Counted, Opened},
    dial,
    header::{Session, TransportHeader},
    io::Io,
};
use crate::{
    identity,
    metrics::TcpMetrics,
    sockets::Stock,
    tls::{self, ServerId, TlsError},
};

/// What is dialled, and how. Connections of one pod to the same target are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where to.
    pub addr: SocketAddr,
    /// How.
    pub mode: Mode,
}

/// How a target is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Without mesh TLS.
    Plain,
    /// Mesh TLS, then what the client says.
    Tls(ServerId),
    /// Mesh TLS, then a transport header, then what the client says.
    Tagged {
        /// Whom to expect.
        server: ServerId,
        /// The application's port.
        port: NonZeroU16,
        /// Host that is wanted, at a gateway.
        name: Option<Arc<str>>,
    },
}

/// Opens connections of one pod to one target.
#[derive(Debug)]
pub struct Connector {
    /// The target.
    pub target: Target,
    /// The pod's sockets.
    pub stock: Arc<Stock>,
    /// The pod's certificate.
    pub identity: identity::Handle,
    /// How long opening may take, TLS included.
    pub limit: Duration,
    /// What connections are counted in.
    pub metrics: Arc<TcpMetrics>,
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer cannot be reached.
    #[error(transparent)]
    Dial(#[from] dial::ConnectError),
    /// The pod has no certificate yet; nothing leaves it without one.
    #[error("no certificate for the pod yet")]
    NoCertificate,
    /// The peer is not who it should be, or does not want us.
    #[error("mesh TLS with {addr}")]
    Tls {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: TlsError,
    },
    /// The connection broke before anything of the client's was sent.
    #[error("send to {addr}")]
    Io {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The peer takes no transport header, and its port is not the application's.
    #[error("{addr} takes no transport header")]
    NoHeader {
        /// Where.
        addr: SocketAddr,
    },
    /// It took too long.
    #[error("{addr} not ready within {limit:?}")]
    TimedOut {
        /// Where.
        addr: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// It failed a moment ago and is left alone for a while.
    #[error("{addr} failed a moment ago")]
    BackingOff {
        /// Where.
        addr: SocketAddr,
    },
}

impl OpenError {
    /// The error as metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Dial(error) => error.label(),
            Self::NoCertificate => "no certificate",
            Self::Tls { source, .. } => source.label(),
            Self::Io { .. } => "i/o",
            Self::NoHeader { .. } => "no transport header",
            Self::TimedOut { .. } => "connect timeout",
            Self::BackingOff { .. } => "backing off",
        }
    }

    /// Whether trying again soon, there or elsewhere, may help. A peer that does not speak mesh TLS
    /// may be about to: discovery learns of a pod that joins before its node has enrolled it.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Tls { source, .. } => source.is_passing(),
            Self::NoHeader { .. } => false,
            Self::Dial(_)
            | Self::NoCertificate
            | Self::Io { .. }
            | Self::TimedOut { .. }
            | Self::BackingOff { .. } => true,
        }
    }

    /// Whether a limit ran out.
    pub const fn is_timeout(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_timeout(),
            Self::TimedOut { .. } => true,
            Self::NoCertificate
            | Self::Tls { .. }
            | Self::Io { .. }
            | Self::NoHeader { .. }
            | Self::BackingOff { .. } => false,
        }
    }
}

impl Connector {
    /// Opens a connection; `session` is what will be spoken on it, `None` for bytes.
    ///
    /// # Errors
    /// When there is none after [`Connector::limit`], or earlier.
    pub async fn open(&self, session: Option<Session>) -> Result<(Io, Opened), OpenError> {
        let addr = self.target.addr;
        let limit = self.limit;
        let io = timeout(limit, self.connect(session))
            .await
            .map_err(|_elapsed| OpenError::TimedOut { addr, limit })??;
        Ok((io, Opened::new(Arc::clone(&self.metrics))))
    }

    /// Opens a connection that counts its bytes itself.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn open_counted(&self, session: Session) -> Result<Counted, OpenError> {
        let (io, opened) = self.open(Some(session)).await?;
        Ok(Counted::new(io, opened))
    }

    async fn connect(&self, session: Option<Session>) -> Result<Io, OpenError> {
        match &self.target.mode {
            Mode::Plain => Ok(self.dial().await?.into()),
            Mode::Tls(server) => Ok(self.handshake(server, false).await?.0),
            Mode::Tagged { server, port, name } => {
                let (mut io, takes_header) = self.handshake(server, true).await?;
                let addr = self.target.addr;
                if takes_header {
                    let header = TransportHeader {
                        port: *port,
                        name: name.clone(),
                        session,
                    };
                    io.write_all(&header.encode())
                        .await
                        .map_err(|source| OpenError::Io { addr, source })?;
                } else if addr.port() != port.get() {
                    // Without a header the peer would take the bytes for another port's.
                    return Err(OpenError::NoHeader { addr });
                }
                Ok(io)
            }
        }
    }

    async fn handshake(&self, server: &ServerId, alpn: bool) -> Result<(Io, bool), OpenError> {
        // Asked before dialling: without a certificate not even a SYN is of use.
        let credentials = self.identity.current().ok_or(OpenError::NoCertificate)?;
        let addr = self.target.addr;
        let (stream, takes_header) =
            tls::client::connect(self.dial().await?, &credentials, server, alpn)
                .await
                .map_err(|source| OpenError::Tls { addr, source })?;
        Ok((stream.into(), takes_header))
    }

    async fn dial(&self) -> Result<tokio::net::TcpStream, dial::ConnectError> {
        dial::connect(&self.stock, self.target.addr, self.limit).await
    }
}
