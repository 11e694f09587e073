//! From a `watch` value to a gRPC stream.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::hub::{View, Watched};
use crate::metrics::OpenStream;

/// A stream of messages.
pub(super) type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

struct Following<V: View, M, S> {
    watched: watch::Receiver<Watched<V>>,
    is_first: bool,
    pending: VecDeque<M>,
    messages: S,
    // What is said before the stream ends because there is no answer any more.
    farewell: Option<M>,
    end: Option<Status>,
    stop: CancellationToken,
    // Counts the stream as open.
    _open: OpenStream,
}

/// Sends what `messages` makes of the present answer and of every later one that it is fast
/// enough to see. When there is no answer any more it sends `farewell` and ends with an error, so
/// that the client asks anew.
pub(super) fn follow<V, M>(
    watched: watch::Receiver<Watched<V>>,
    stop: CancellationToken,
    open: OpenStream,
    farewell: Option<M>,
    messages: impl FnMut(&Arc<V::Answer>) -> Vec<M> + Send + 'static,
) -> Messages<M>
where
    V: View,
    M: Send + 'static,
{
    let following = Following::<V, M, _> {
        watched,
        is_first: true,
        pending: VecDeque::new(),
        messages,
        farewell,
        end: None,
        stop,
        _open: open,
    };
    Box::pin(stream::unfold(Some(following), |following| async move {
        let mut following = following?;
        match following.next().await {
            Ok(message) => Some((Ok(message), Some(following))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl<V, M, S> Following<V, M, S>
where
    V: View,
    S: FnMut(&Arc<V::Answer>) -> Vec<M>,
{
    async fn next(&mut self) -> Result<M, Status> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Ok(message);
            }
            if let Some(end) = self.end.take() {
                return Err(end);
            }
            if !self.is_first {
                let changed = tokio::select! {
                    () = self.stop.cancelled() => return Err(stopping()),
                    changed = self.watched.changed() => changed,
                };
                changed.map_err(|_gone| stopping())?;
            }
            self.is_first = false;
            let answer = self.watched.borrow_and_update().clone();
            match answer {
                Ok(answer) => self.pending.extend((self.messages)(&answer)),
                Err(refused) => {
                    self.pending.extend(self.farewell.take());
                    self.end = Some(refused.into());
                }
            }
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("the controller stops")
}

/// Sends the present value of something that is no view, and every later one.
pub(super) fn follow_value<T, M>(
    value: watch::Receiver<T>,
    stop: CancellationToken,
    open: OpenStream,
    message: impl Fn(&T) -> M + Clone + Send + 'static,
) -> Messages<M>
where
    T: Clone + Send + Sync + 'static,
    M: Send + 'static,
{
    let state = Some((value, true, open));
    Box::pin(stream::unfold(state, move |state| {
        let stop = stop.clone();
        let message = message.clone();
        async move {
            let (mut value, is_first, open) = state?;
            if !is_first {
                let changed = tokio::select! {
                    () = stop.cancelled() => return Some((Err(stopping()), None)),
                    changed = value.changed() => changed,
                };
                if changed.is_err() {
                    return Some((Err(stopping()), None));
                }
            }
            let next = message(&*value.borrow_and_update());
            Some((Ok(next), Some((value, false, open))))
        }
    }))
}
