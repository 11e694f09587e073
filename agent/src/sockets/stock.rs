//! Dial sockets of one pod, asked for ahead so that a connection does not wait for weft-node.
//!
//! A shelf per address family. When fewer than [`LOW_WATER`] sockets are on it or on their way,
//! more are asked for: few for a pod that seldom dials, up to 64 at once for one that empties the
//! shelf faster than it is filled. Used from all worker threads; a lock is held for a push or pop.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    net::TcpSocket,
    sync::{Notify, Semaphore, TryAcquireError},
};
use weft_api::model::PodUid;

/// When fewer are there or on their way, more are asked for.
const LOW_WATER: u32 = 8;
/// How many are asked for at once: at first, and at most.
const BATCH: (u32, u32) = (8, 64);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Who lends sockets: weft-node, by way of [`Link`](super::Link).
pub trait Lender: Send + Sync {
    /// Asks for sockets, which [`Stock::put`] is given later. Returns whether it could ask.
    fn ask(&self, uid: &PodUid, family: Family, count: u32) -> bool;
}

/// Why there is no socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StockError {
    /// weft-node did not lend one: its reason.
    #[error("weft-node lends none: {0}")]
    Refused(Arc<str>),
    /// The pod has gone.
    #[error("the pod has gone")]
    PodGone,
}

/// Dial sockets of one pod.
pub struct Stock {
    uid: PodUid,
    lender: Arc<dyn Lender>,
    v4: Shelf,
    v6: Shelf,
}

struct Shelf {
    family: Family,
    content: Mutex<Content>,
    /// As many permits as there are sockets, so that takers queue in order.
    available: Semaphore,
    /// Tells those who wait that none will come.
    refused: Notify,
}

struct Content {
    sockets: Vec<TcpSocket>,
    on_their_way: u32,
    batch: u32,
    reason: Arc<str>,
}

impl Stock {
    /// Makes an empty stock; asks for nothing yet.
    pub fn new(uid: PodUid, lender: Arc<dyn Lender>) -> Self {
        Self {
            uid,
            lender,
            v4: Shelf::new(Family::V4),
            v6: Shelf::new(Family::V6),
        }
    }

    /// Takes a socket, and waits for one if there is none.
    ///
    /// # Errors
    /// When none can be had.
    ///
    /// # Cancel safety
    /// No socket is lost when the future is dropped.
    pub async fn take(&self, family: Family) -> Result<TcpSocket, StockError> {
        let shelf = self.shelf(family);
        let permit = match shelf.available.try_acquire() {
            Ok(permit) => permit,
            Err(TryAcquireError::Closed) => return Err(StockError::PodGone),
            Err(TryAcquireError::NoPermits) => {
                let mut refused = std::pin::pin!(shelf.refused.notified());
                refused.as_mut().enable();
                shelf.grow();
                self.ask(shelf, 1);
                tokio::select! {
                    permit = shelf.available.acquire() => {
                        permit.map_err(|_closed| StockError::PodGone)?
                    }
                    () = refused => {
                        let reason = Arc::clone(&shelf.content.lock().reason);
                        return Err(StockError::Refused(reason));
                    }
                }
            }
        };
        let socket = shelf.content.lock().sockets.pop();
        permit.forget();
        self.ask(shelf, LOW_WATER);
        socket.ok_or(StockError::PodGone)
    }

    /// Fills the shelf of a family for the first time, or after weft-node has come back.
    pub fn prepare(&self, family: Family) {
        self.ask(self.shelf(family), LOW_WATER);
    }

    /// Puts sockets on a shelf: the answer to one [`Lender::ask`]. `reason` says why they are
    /// fewer than were asked for; empty otherwise.
    pub fn put(&self, family: Family, sockets: Vec<TcpSocket>, reason: &str) {
        let shelf = self.shelf(family);
        let count = sockets.len();
        let mut content = shelf.content.lock();
        content.on_their_way = 0;
        if shelf.available.is_closed() {
            return;
        }
        content.sockets.extend(sockets);
        if !reason.is_empty() {
            content.reason = reason.into();
        }
        drop(content);
        shelf.available.add_permits(count);
        if count == 0 && !reason.is_empty() {
            shelf.refused.notify_waiters();
        }
    }

    /// Forgets what was asked for: the connection to weft-node broke.
    pub(super) fn forget_asked(&self) {
        for shelf in [&self.v4, &self.v6] {
            shelf.content.lock().on_their_way = 0;
        }
    }

    /// Ends the stock with its pod; who waits is told.
    pub(super) fn close(&self) {
        for shelf in [&self.v4, &self.v6] {
            shelf.available.close();
            shelf.content.lock().sockets.clear();
        }
    }

    /// How many sockets are there now.
    pub fn len(&self, family: Family) -> usize {
        self.shelf(family).content.lock().sockets.len()
    }

    const fn shelf(&self, family: Family) -> &Shelf {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Asks for a batch if fewer than `low` are there or on their way. One batch at a time.
    fn ask(&self, shelf: &Shelf, low: u32) {
        let count = {
            let mut content = shelf.content.lock();
            let there = u32::try_from(content.sockets.len()).unwrap_or(u32::MAX);
            if content.on_their_way > 0 || there >= low || shelf.available.is_closed() {
                return;
            }
            content.on_their_way = content.batch;
            content.batch
        };
        if !self.lender.ask(&self.uid, shelf.family, count) {
            shelf.content.lock().on_their_way = 0;
        }
    }
}

impl fmt::Debug for Stock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stock")
            .field("uid", &self.uid)
            .field("v4", &self.len(Family::V4))
            .field("v6", &self.len(Family::V6))
            .finish_non_exhaustive()
    }
}

impl Shelf {
    fn new(family: Family) -> Self {
        Self {
            family,
            content: Mutex::new(Content {
                sockets: Vec::new(),
                on_their_way: 0,
                batch: BATCH.0,
                reason: "".into(),
            }),
            available: Semaphore::new(0),
            refused: Notify::new(),
        }
    }

    /// Somebody found the shelf empty: bigger batches are worth their memory.
    fn grow(&self) {
        let mut content = self.content.lock();
        content.batch = (content.batch * 2).min(BATCH.1);
    }
}
