//! Long-running tasks of a daemon: each has a name, and the first that ends, ends the process.
//!
//! A task that dies quietly leaves a daemon that looks healthy and does nothing. Therefore a
//! return, an error or a panic of any task stops all others, and the process exits non-zero for
//! its supervisor to restart it.

use std::future::Future;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error_span};

/// The tasks of a process.
#[derive(Default)]
pub struct Tasks {
    stop: CancellationToken,
    set: JoinSet<anyhow::Result<()>>,
    names: Vec<(Id, &'static str)>,
}

/// A task ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum TaskEnded {
    /// It returned without an error.
    #[error("task {0} ended early")]
    Early(&'static str),
    /// It returned an error.
    #[error("task {name} failed")]
    Failed {
        /// The task's name.
        name: &'static str,
        /// What it said.
        source: anyhow::Error,
    },
    /// It panicked.
    #[error("task {0} panicked")]
    Panicked(&'static str),
}

impl Tasks {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that is cancelled when the process is to stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task. It gets a token and returns soon after that is cancelled.
    pub fn spawn<F, T>(&mut self, name: &'static str, start: F)
    where
        F: FnOnce(CancellationToken) -> T,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let task = start(self.stop.clone()).instrument(error_span!("task", name));
        let id = self.set.spawn(task).id();
        self.names.push((id, name));
    }

    /// Runs until `shutdown` completes or a task ends, then stops every task and waits for all.
    ///
    /// # Errors
    /// When a task ended before `shutdown` did.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), TaskEnded> {
        let first = tokio::select! {
            () = shutdown => None,
            Some(ended) = self.set.join_next_with_id() => Some(self.name_end(ended)),
        };
        self.stop.cancel();
        while let Some(ended) = self.set.join_next_with_id().await {
            let ended = self.name_end(ended);
            debug!(%ended, "task stopped");
        }
        match first {
            None => Ok(()),
            Some(ended) => Err(ended),
        }
    }

    fn name_end(
        &self,
        ended: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>,
    ) -> TaskEnded {
        let name = |id| {
            self.names
                .iter()
                .find(|(known, _)| *known == id)
                .map_or("unknown", |(_, name)| *name)
        };
        match ended {
            Ok((id, Ok(()))) => TaskEnded::Early(name(id)),
            Ok((id, Err(source))) => TaskEnded::Failed {
                name: name(id),
                source,
            },
            Err(error) => TaskEnded::Panicked(name(error.id())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn the_first_task_that_ends_ends_the_process() {
        type End = fn() -> anyhow::Result<()>;
        let ends: [(&str, End); 3] = [
            ("task second ended early", || Ok(())),
            ("task second failed", || anyhow::bail!("no")),
            ("task second panicked", || panic!("boom")),
        ];
        for (expected, end) in ends {
            let mut tasks = Tasks::new();
            tasks.spawn("first", |stop| async move {
                stop.cancelled().await;
                Ok(())
            });
            tasks.spawn("second", |_stop| async move { end() });
            let error = tasks.run(pending()).await.unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn shutdown_waits_for_every_task() {
        let mut tasks = Tasks::new();
        let (done, mut is_done) = tokio::sync::oneshot::channel();
        tasks.spawn("slow", |stop| async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            done.send(()).ok();
            Ok(())
        });
        tasks.run(async {}).await.unwrap();
        assert_eq!(is_done.try_recv(), Ok(()));
    }
}
