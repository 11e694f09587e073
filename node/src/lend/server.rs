//! Accepts agents at `RUN_DIR/node.sock`.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
    sockopt::socket_peercred,
};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};
use weft_runtime::logging::report;

use super::{
    Lender,
    hub::Hub,
    packet::{Packets, watch},
    peer::{LendError, Peer},
};
use crate::metrics::Metrics;

/// Agents that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the socket is.
    pub path: PathBuf,
    /// Users whose processes may borrow sockets.
    pub uids: Vec<u32>,
}

/// See the module.
pub struct Server {
    socket: AsyncFd<OwnedFd>,
    uids: Vec<u32>,
    hub: Arc<Hub>,
    lender: Arc<dyn Lender>,
    metrics: Arc<Metrics>,
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("listen on {path:?}")]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

impl Server {
    /// Binds the socket, in place of one that a former process left. To be called in a runtime.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn bind(
        config: Config,
        hub: Arc<Hub>,
        lender: Arc<dyn Lender>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BindError> {
        let socket = bound(&config).and_then(watch);
        let socket = socket.map_err(|source| BindError {
            path: config.path,
            source,
        })?;
        Ok(Self {
            socket,
            uids: config.uids,
            hub,
            lender,
            metrics,
        })
    }

    /// Serves agents until stopped.
    ///
    /// # Errors
    /// When the socket cannot be accepted from.
    pub async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let peers = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept() => accepted?,
            };
            match self.admit(accepted) {
                Ok(peer) => {
                    let (stop, metrics) = (stop.clone(), Arc::clone(&self.metrics));
                    peers.spawn(async move {
                        if let Err(error) = peer.serve(stop).await {
                            note(&metrics, &error);
                        }
                    });
                }
                Err(error) => note(&self.metrics, &error),
            }
        }
        peers.close();
        peers.wait().await;
        Ok(())
    }

    async fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let accepted = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    accept_with(socket.as_fd(), flags).map_err(io::Error::from)
                })
                .await;
            match accepted {
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                other => return other,
            }
        }
    }

    fn admit(&self, socket: OwnedFd) -> Result<Peer, LendError> {
        let credentials = socket_peercred(&socket).map_err(io::Error::from)?;
        let uid = credentials.uid.as_raw();
        if !self.uids.contains(&uid) {
            return Err(LendError::Refused {
                pid: credentials.pid.as_raw_nonzero().get(),
                uid,
            });
        }
        debug!(uid, "agent connects");
        Ok(Peer {
            packets: Packets::new(socket)?,
            hub: Arc::clone(&self.hub),
            lender: Arc::clone(&self.lender),
        })
    }
}

fn note(metrics: &Metrics, error: &LendError) {
    metrics.lend_error(error.label());
    warn!(error = %report(error), "agent is disconnected");
}

fn bound(config: &Config) -> io::Result<OwnedFd> {
    remove_stale(&config.path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(&config.path)?)?;
    // Who may connect is decided by credentials, which also names who was refused.
    std::fs::set_permissions(&config.path, std::fs::Permissions::from_mode(0o666))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes the socket file of a process that is gone.
///
/// # Errors
/// When it is there and cannot be removed.
pub(crate) fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
