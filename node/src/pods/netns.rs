//! Work inside pods' network namespaces, on the one thread of the process that enters them.
//!
//! A thread is in one namespace at a time, and a runtime moves tasks between threads at will:
//! a task that called setns would take others with it. Therefore closures are handed to a thread
//! of their own, which enters, runs the closure without ever yielding, and goes back. If it cannot
//! go back it ends, and the next caller gets a new thread. The node's own namespace is refused.
//! A socket stays in the namespace it was made in, so only making one needs this.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    fs::{Mode, OFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

/// A closure that takes longer holds up every other pod; its caller gets an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which namespace a path led to: device and inode of the namespace's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// An open network namespace. Keeps it alive.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

/// Why nothing could be done in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("open network namespace {path:?}")]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path leads to the namespace that this process or pid 1 is in.
    #[error(
        "{0:?} is the node's own network namespace: a pod that uses the node's network cannot be meshed"
    )]
    Host(PathBuf),
    /// The kernel does not let us in.
    #[error("enter network namespace (needs CAP_SYS_ADMIN)")]
    Enter(#[source] io::Error),
    /// The thread cannot be started.
    #[error("start the thread that enters network namespaces")]
    Thread(#[source] io::Error),
    /// The work did not come back.
    #[error("work in a network namespace did not end within {PATIENCE:?}, or panicked")]
    Lost,
}

impl NetnsId {
    /// Which namespace the path leads to now.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    fn of_fd(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

impl Netns {
    /// The namespace's identity.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Wraps an open file, which need not be a namespace, for tests of what never enters it.
    #[cfg(test)]
    pub(crate) fn fake(fd: OwnedFd) -> Self {
        let id = NetnsId::of_fd(fd.as_fd()).expect("an open file has an inode");
        Self { fd, id }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Visit {
    netns: OwnedFd,
    job: Job,
    refused: mpsc::SyncSender<io::Error>,
}

/// The way into pods' namespaces. Blocks its caller: not to be used on a runtime's thread.
pub struct Entrance {
    own: Vec<NetnsId>,
    visits: Mutex<Option<mpsc::Sender<Visit>>>,
}

impl Default for Entrance {
    fn default() -> Self {
        Self::new()
    }
}

impl Entrance {
    /// Makes an entrance that refuses the namespaces of this process and of pid 1.
    pub fn new() -> Self {
        let own = ["/proc/self/ns/net", "/proc/1/ns/net"]
            .iter()
            .filter_map(|path| NetnsId::of_path(Path::new(path)).ok())
            .collect();
        Self {
            own,
            visits: Mutex::new(None),
        }
    }

    /// Opens a pod's namespace.
    ///
    /// # Errors
    /// When the path cannot be opened or is the node's own namespace.
    pub fn open(&self, path: &Path) -> Result<Netns, NetnsError> {
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|fd| Ok((NetnsId::of_fd(fd.as_fd())?, fd)));
        let (id, fd) = opened.map_err(|source| NetnsError::Open {
            path: path.to_owned(),
            source,
        })?;
        if self.own.contains(&id) {
            return Err(NetnsError::Host(path.to_owned()));
        }
        Ok(Netns { fd, id })
    }

    /// Runs a closure inside a namespace and waits for what it returns.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the closure panics or takes too long.
    pub fn run<R: Send + 'static>(
        &self,
        netns: &Netns,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, NetnsError> {
        let (done, result) = mpsc::sync_channel(1);
        let (refused, refusal) = mpsc::sync_channel(1);
        let visit = Visit {
            netns: netns.fd.try_clone().map_err(NetnsError::Enter)?,
            job: Box::new(move || {
                done.send(job()).ok();
            }),
            refused,
        };
        self.send(visit)?;
        match result.recv_timeout(PATIENCE) {
            Ok(result) => Ok(result),
            Err(_gone) => match refusal.try_recv() {
                Ok(error) => Err(NetnsError::Enter(error)),
                Err(_none) => Err(NetnsError::Lost),
            },
        }
    }

    fn send(&self, visit: Visit) -> Result<(), NetnsError> {
        let mut visits = self.visits.lock();
        let visit = match visits.as_ref() {
            None => visit,
            Some(sender) => match sender.send(visit) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(visit)) => visit,
            },
        };
        let sender = start_thread().map_err(NetnsError::Thread)?;
        sender.send(visit).map_err(|_gone| NetnsError::Lost)?;
        *visits = Some(sender);
        Ok(())
    }
}

fn start_thread() -> io::Result<mpsc::Sender<Visit>> {
    let (sender, visits) = mpsc::channel();
    thread::Builder::new()
        .name("weft-netns".to_owned())
        .spawn(move || visit_all(&visits))?;
    Ok(sender)
}

fn visit_all(visits: &mpsc::Receiver<Visit>) {
    let path = "/proc/thread-self/ns/net";
    let home = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(home) => home,
        Err(error) => {
            error!(%error, path, "own network namespace cannot be opened; no pod can be entered");
            return;
        }
    };
    while let Ok(visit) = visits.recv() {
        if let Err(error) = enter(visit.netns.as_fd()) {
            visit.refused.send(error).ok();
            continue;
        }
        let outcome = catch_unwind(AssertUnwindSafe(visit.job));
        drop(visit.netns);
        let back = enter(home.as_fd());
        if outcome.is_err() {
            error!("work in a pod's network namespace panicked");
        }
        if let Err(error) = back {
            warn!(%error, "cannot leave a pod's network namespace; this thread is given up");
            return;
        }
    }
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_namespace_is_refused() {
        let error = Entrance::new()
            .open(Path::new("/proc/self/ns/net"))
            .unwrap_err();
        assert!(matches!(error, NetnsError::Host(_)), "{error}");
    }

    #[test]
    fn a_missing_namespace_is_named() {
        let error = Entrance::new().open(Path::new("/nowhere/ns")).unwrap_err();
        assert_eq!(error.to_string(), r#"open network namespace "/nowhere/ns""#);
    }

    #[test]
    fn what_is_no_namespace_cannot_be_entered() {
        let entrance = Entrance::new();
        let netns = entrance.open(Path::new("/dev/null")).unwrap();
        let error = entrance.run(&netns, || ()).unwrap_err();
        assert!(matches!(error, NetnsError::Enter(_)), "{error}");
    }
}
