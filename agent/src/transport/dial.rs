//! Opens connections with lent sockets, so that they leave from the pod's own network namespace.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::sockets::{Family, Stock, StockError};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// weft-node has not lent a socket.
    #[error("no socket to connect to {addr}")]
    NoSocket {
        /// Where to.
        addr: SocketAddr,
        /// Why.
        source: StockError,
    },
    /// The network or the peer refused.
    #[error("connect to {addr}")]
    Dial {
        /// Where to.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The peer did not answer in time.
    #[error("connect to {addr}: no answer within {limit:?}")]
    TimedOut {
        /// Where to.
        addr: SocketAddr,
        /// The limit.
        limit: Duration,
    },
}

impl ConnectError {
    /// The error as metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoSocket { .. } => "no socket",
            Self::Dial { .. } => "connect error",
            Self::TimedOut { .. } => "connect timeout",
        }
    }

    /// Whether the limit ran out.
    pub const fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }
}

/// Connects within `limit`. Options are set on the sockets when they are lent.
///
/// # Errors
/// When there is no socket or no connection.
pub async fn connect(
    stock: &Stock,
    addr: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let family = match addr {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    let connecting = async {
        let socket: TcpSocket = stock
            .take(family)
            .await
            .map_err(|source| ConnectError::NoSocket { addr, source })?;
        socket
            .connect(addr)
            .await
            .map_err(|source| ConnectError::Dial { addr, source })
    };
    timeout(limit, connecting)
        .await
        .unwrap_or(Err(ConnectError::TimedOut { addr, limit }))
}
