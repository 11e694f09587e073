//! Follows a stream of the controller's: opens it, opens it again, hands on what it says.
//!
//! A stream that breaks is opened again with backoff and jitter, for ever. A status that says that
//! the question has no answer is handed on, and asked again much later. Streams end once an hour,
//! spread, so that agents move to controllers that were added.

use std::{future::Future, ops::ControlFlow, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, Streaming};
use tracing::debug;
use weft_runtime::backoff::Backoff;

use super::client::{Call, Client};
use crate::metrics::{Stream, StreamLabels};

/// How long the controller may take to begin to answer, and then to send the first message.
const FIRST_LIMIT: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const LIFETIME: Duration = Duration::from_hours(1);

/// What a stream says.
pub(super) enum Event<M> {
    /// A message. `first` tells that it is the first one of a new stream.
    Message {
        /// The message.
        message: M,
        /// What came before it on an older stream may be outdated.
        first: bool,
    },
    /// The question has no answer.
    Refused(Code),
}

/// How to follow a stream.
#[derive(Clone, Copy)]
pub(super) struct Follow {
    /// Which one.
    pub(super) stream: Stream,
    /// Whether a stream without a message soon is broken. Not so where silence means "none".
    pub(super) expects_message: bool,
    /// When to ask again what had no answer; up to twice as long.
    pub(super) ask_again: Duration,
}

enum End {
    /// Nobody wants it any more.
    Stop,
    /// After a message: begin anew at once.
    Renew,
    /// Something broke.
    Broken(Status),
    /// The question has no answer.
    Refused(Code),
}

impl Follow {
    /// Follows until `apply` breaks or `stop` is cancelled.
    pub(super) async fn run<M, F, Fut>(
        self,
        client: &Client,
        stop: &CancellationToken,
        open: F,
        mut apply: impl FnMut(Event<M>) -> ControlFlow<()>,
    ) where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Response<Streaming<M>>, Status>>,
    {
        let labels = StreamLabels {
            stream: self.stream,
        };
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX, 0.5);
        loop {
            let mut progress = false;
            let once = self.once(client, &open, &mut apply, &mut progress);
            let Some(end) = stop.run_until_cancelled(once).await else {
                return;
            };
            if progress {
                backoff.reset();
            }
            let wait = match end {
                End::Stop => return,
                End::Renew => continue,
                End::Broken(status) => {
                    client.metrics.stream_failures.get_or_create(&labels).inc();
                    if !progress {
                        client.fails(&status);
                    }
                    debug!(stream = self.stream.label(), code = ?status.code(), error = status.message(), "stream broke");
                    backoff.next(rand::random())
                }
                End::Refused(code) => {
                    debug!(
                        stream = self.stream.label(),
                        ?code,
                        "controller has no answer"
                    );
                    if apply(Event::Refused(code)).is_break() {
                        return;
                    }
                    self.ask_again.mul_f64(1.0 + rand::random::<f64>())
                }
            };
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn once<M, F, Fut>(
        self,
        client: &Client,
        open: &F,
        apply: &mut impl FnMut(Event<M>) -> ControlFlow<()>,
        progress: &mut bool,
    ) -> End
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Response<Streaming<M>>, Status>>,
    {
        let mut call = client.begin();
        let mut stream = match timeout(FIRST_LIMIT, open()).await {
            Ok(Ok(response)) => {
                call.answered();
                response.into_inner()
            }
            Ok(Err(status)) => return end(&mut call, status),
            Err(_elapsed) => return end(&mut call, Status::deadline_exceeded("no answer")),
        };
        let _open = Open::new(client, self.stream);
        let spread: f64 = rand::random();
        let lifetime = Instant::now() + LIFETIME.mul_f64(0.75 + spread / 2.0);
        let mut limit = match self.expects_message {
            true => Instant::now() + FIRST_LIMIT,
            false => lifetime,
        };
        let mut first = true;
        loop {
            let message = match timeout_at(limit, stream.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return end(&mut call, Status::unavailable("stream ended")),
                Ok(Err(status)) => return end(&mut call, status),
                Err(_elapsed) if first && self.expects_message => {
                    return end(&mut call, Status::deadline_exceeded("no message"));
                }
                Err(_elapsed) => return End::Renew,
            };
            if first {
                client.answers();
            }
            if apply(Event::Message { message, first }).is_break() {
                return End::Stop;
            }
            (*progress, first, limit) = (true, false, lifetime);
        }
    }
}

fn end(call: &mut Call, status: Status) -> End {
    call.ended(&status);
    let code = status.code();
    let has_no_answer = matches!(
        code,
        Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::Unimplemented
    );
    match has_no_answer {
        true => End::Refused(code),
        false => End::Broken(status),
    }
}

/// Counts a stream as open.
struct Open<'client>(&'client Client, StreamLabels);

impl<'client> Open<'client> {
    fn new(client: &'client Client, stream: Stream) -> Self {
        let labels = StreamLabels { stream };
        client.metrics.streams.get_or_create(&labels).inc();
        Self(client, labels)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics.streams.get_or_create(&self.1).dec();
    }
}
