//! Says when files may have changed: at once if the kernel says so, and now and then in any case.
//!
//! Events come in bursts (truncate, write, close, rename), so a change is passed on once nothing
//! has happened for a moment, or after [`Timing::longest`]. Some file systems send no events and
//! watches can be lost, therefore a caller is woken every [`Timing::rescan`] too, and must compare
//! contents itself.

use std::{path::PathBuf, time::Duration};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tracing::warn;

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A burst has ended when nothing happened for so long.
    pub quiet: Duration,
    /// A burst that does not end is passed on after so long.
    pub longest: Duration,
    /// Woken at least so often.
    pub rescan: Duration,
}

/// Watches directories.
pub(crate) struct FsWatch {
    events: mpsc::Receiver<()>,
    // Keeps the channel open when there is no watcher.
    _sender: mpsc::Sender<()>,
    _watcher: Option<RecommendedWatcher>,
    timing: Timing,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(50),
            longest: Duration::from_millis(500),
            rescan: Duration::from_secs(5),
        }
    }
}

impl FsWatch {
    /// Starts to watch.
    pub(crate) fn new(paths: &[PathBuf], mode: RecursiveMode, timing: Timing) -> Self {
        let (sender, events) = mpsc::channel(1);
        let handler = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error may hide changes, so it counts as one. A full channel says it already.
            if event.map_or(true, |event| is_change(event.kind)) {
                handler.try_send(()).ok();
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            for path in paths {
                watcher.watch(path, mode)?;
            }
            Ok(watcher)
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(%error, every = ?timing.rescan, "files cannot be watched; they are compared instead");
                None
            }
        };
        Self {
            events,
            _sender: sender,
            _watcher: watcher,
            timing,
        }
    }

    /// Returns when files may have changed.
    ///
    /// # Cancel safety
    /// A call that is dropped within a burst may lose it until the next rescan.
    pub(crate) async fn next(&mut self) {
        if timeout(self.timing.rescan, self.events.recv())
            .await
            .is_err()
        {
            return;
        }
        let end = Instant::now() + self.timing.longest;
        loop {
            let quiet = (Instant::now() + self.timing.quiet).min(end);
            if timeout_at(quiet, self.events.recv()).await.is_err() {
                return;
            }
        }
    }
}

/// Reading a file is an event too, and must not lead to reading it again.
const fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => matches!(kind, AccessKind::Close(AccessMode::Write)),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn without_events_the_caller_is_woken_by_the_clock() {
        let nowhere = PathBuf::from("/nonexistent/manifests");
        let timing = Timing {
            rescan: NEVER,
            ..Timing::default()
        };
        let mut watch = FsWatch::new(&[nowhere], RecursiveMode::Recursive, timing);
        let start = Instant::now();
        watch.next().await;
        assert_eq!(start.elapsed().as_secs(), NEVER.as_secs());
    }

    #[tokio::test]
    async fn a_write_deep_below_wakes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("x.yaml"), "1").unwrap();
        let timing = Timing {
            quiet: Duration::from_millis(1),
            longest: Duration::from_millis(10),
            rescan: NEVER,
        };
        let paths = [folder.path().to_path_buf()];
        let mut watch = FsWatch::new(&paths, RecursiveMode::Recursive, timing);
        fs::write(deep.join("x.yaml"), "2").unwrap();
        let limit = Duration::from_secs(20);
        timeout(limit, watch.next()).await.unwrap();
    }

    #[test]
    fn reading_is_no_change() {
        use notify::event::{CreateKind, RemoveKind};
        for (kind, expected) in [
            (EventKind::Access(AccessKind::Read), false),
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), false),
            (
                EventKind::Access(AccessKind::Close(AccessMode::Read)),
                false,
            ),
            (
                EventKind::Access(AccessKind::Close(AccessMode::Write)),
                true,
            ),
            (EventKind::Create(CreateKind::File), true),
            (EventKind::Remove(RemoveKind::File), true),
            (EventKind::Other, true),
        ] {
            assert_eq!(is_change(kind), expected, "{kind:?}");
        }
    }
}
