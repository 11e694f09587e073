//! Runs what HTTP/2 spawns for its connections and streams.

use std::future::Future;

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// Spawns into a tracker, so that whoever waits for connections waits for their streams, too.
#[derive(Clone, Debug)]
pub struct Exec(TaskTracker);

impl Exec {
    /// Wraps a tracker.
    pub const fn new(tracker: TaskTracker) -> Self {
        Self(tracker)
    }
}

impl<F> Executor<F> for Exec
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        // The tracker waits for it.
        drop(self.0.spawn(future));
    }
}
