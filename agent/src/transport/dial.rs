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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;
    use weft_api::model::PodUid;

    use super::*;
    use crate::{
        sockets::{Lender, testing::stock},
        tls::testing::soon,
    };

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn connects_with_lent_sockets_of_either_family() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(addr).await.unwrap();
            let addr = listener.local_addr().unwrap();
            let stream = soon(connect(&stock(), addr, LIMIT)).await.unwrap();
            let (_stream, client) = soon(listener.accept()).await.unwrap();
            assert_eq!(stream.local_addr().unwrap(), client);
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_an_error_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = soon(connect(&stock(), addr, LIMIT)).await.unwrap_err();
        assert!(!error.is_timeout());
        assert_eq!(error.to_string(), format!("connect to {addr}"));
    }

    struct Nobody;

    impl Lender for Nobody {
        fn ask(&self, _uid: &PodUid, _family: Family, _count: u32) -> bool {
            false
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_socket_the_limit_ends_the_wait() {
        let stock = Stock::new("test".into(), Arc::new(Nobody));
        let addr = "127.0.0.1:1".parse().unwrap();
        let error = connect(&stock, addr, LIMIT).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
}
