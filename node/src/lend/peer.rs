//! Speaks the lending protocol with one agent, from `Hello` until one side goes.
//!
//! Lock-step: a message to the agent is sent only when the one before was acknowledged. The
//! agent's requests are read all the while, and answered one after the other.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use weft_api::proto::lend::{self as proto, to_agent, to_node};

use super::{
    Lender,
    hub::{Event, Hub, Seat},
    packet::{MAX_FDS, Packet, Packets, ReceiveError},
    protocol::{self, VERSION},
};
use crate::pods::sockets::{Family, Kind};

/// How long an agent may take for its greeting, and for each acknowledgement.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most pods whose listeners an agent may offer back.
const MAX_HOLDING: u32 = 4096;

/// Most requests of an agent that may wait.
const MAX_WANTS: usize = 1024;

/// Why an agent was disconnected.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// The connection broke.
    #[error("lending connection")]
    Io(#[from] io::Error),
    /// A packet exceeds the limits.
    #[error("agent sent too much")]
    Receive(#[source] ReceiveError),
    /// A packet does not parse.
    #[error("agent sent what is no message")]
    Garbage(#[source] prost::DecodeError),
    /// A message is out of place or says nonsense.
    #[error("agent broke the protocol: {0}")]
    Protocol(&'static str),
    /// The agent speaks another version.
    #[error("agent speaks version {0} of the protocol, and this is version {VERSION}")]
    Version(u32),
    /// The agent is silent.
    #[error("agent did not answer within {PATIENCE:?}")]
    Silent,
    /// The agent does not keep up.
    #[error("agent did not keep up with events")]
    Slow,
    /// The process may not borrow sockets.
    #[error("process {pid} of user {uid} may not borrow sockets (see --agent-uid)")]
    Refused {
        /// Its process id.
        pid: i32,
        /// Its user.
        uid: u32,
    },
}

impl LendError {
    /// Name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Receive(_) => "too_much",
            Self::Garbage(_) => "garbage",
            Self::Protocol(_) => "protocol",
            Self::Version(_) => "version",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Refused { .. } => "refused",
        }
    }
}

/// One agent.
pub(super) struct Peer {
    pub(super) packets: Packets,
    pub(super) hub: Arc<Hub>,
    pub(super) lender: Arc<dyn Lender>,
}

/// A want that is being met.
type Lending<'peer> =
    Pin<Box<dyn Future<Output = (to_agent::Message, Vec<OwnedFd>)> + Send + 'peer>>;

struct Want {
    uid: String,
    family: Family,
    count: usize,
}

/// What is under way with a greeted agent.
#[derive(Default)]
struct Progress {
    seq: u64,
    /// Sequence number and deadline of the message that is not acknowledged yet.
    unacknowledged: Option<(u64, Instant)>,
    wants: VecDeque<Want>,
}

impl Peer {
    /// Serves the agent until it goes or `stop` is cancelled.
    pub(super) async fn serve(self, stop: CancellationToken) -> Result<(), LendError> {
        let greeted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            greeted = timeout(PATIENCE, self.greet()) => greeted,
        };
        let Some((hello, held)) = greeted.map_err(|_elapsed| LendError::Silent)?? else {
            return Ok(());
        };
        let draining = hello.draining.then_some(&held);
        let mut seat = self.hub.connect(hello.generation, draining);
        let generation = seat.generation;
        info!(
            generation,
            instance = hello.instance,
            holding = hello.holding,
            "agent connected"
        );
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.talk(&mut seat) => ended,
        };
        self.hub.disconnect(&seat);
        info!(generation, "agent disconnected");
        ended
    }

    /// Reads `Hello` and the listeners that the agent offers back.
    async fn greet(&self) -> Result<Option<(proto::Hello, BTreeSet<String>)>, LendError> {
        let Some((message, _fds)) = self.next().await? else {
            return Ok(None);
        };
        let to_node::Message::Hello(hello) = message else {
            return Err(LendError::Protocol("the first message is not Hello"));
        };
        if hello.version < VERSION {
            return Err(LendError::Version(hello.version));
        }
        if hello.holding > MAX_HOLDING {
            return Err(LendError::Protocol("too many pods are offered back"));
        }
        let mut held = BTreeSet::new();
        for _ in 0..hello.holding {
            let Some((message, fds)) = self.next().await? else {
                return Ok(None);
            };
            let to_node::Message::Holding(holding) = message else {
                return Err(LendError::Protocol("Holding is missing after Hello"));
            };
            let listeners = match_up(&holding, fds)?;
            self.lender.take_back(&holding.uid, listeners).await;
            held.insert(holding.uid);
        }
        Ok(Some((hello, held)))
    }

    async fn talk(&self, seat: &mut Seat) -> Result<(), LendError> {
        let mut progress = Progress::default();
        let welcome = to_agent::Message::Welcome(proto::Welcome {
            version: VERSION,
            generation: seat.generation,
        });
        self.send(&mut progress, welcome, &[]).await?;
        let mut lending: Option<Lending<'_>> = None;
        loop {
            if lending.is_none()
                && let Some(want) = progress.wants.pop_front()
            {
                lending = Some(Box::pin(self.answer(want)));
            }
            let is_free = progress.unacknowledged.is_none();
            let deadline = progress.unacknowledged.map(|(_, deadline)| deadline);
            tokio::select! {
                received = self.next() => match received? {
                    Some((message, _fds)) => self.hear(&mut progress, seat, message)?,
                    None => return Ok(()),
                },
                event = seat.events.recv(), if is_free => {
                    let event = event.ok_or(LendError::Slow)?;
                    self.tell(&mut progress, &event).await?;
                }
                (message, sockets) = lent(&mut lending), if is_free => {
                    lending = None;
                    let fds: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
                    self.send(&mut progress, message, &fds).await?;
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(LendError::Silent);
                }
            }
        }
    }

    fn hear(
        &self,
        progress: &mut Progress,
        seat: &Seat,
        message: to_node::Message,
    ) -> Result<(), LendError> {
        match message {
            to_node::Message::Ack(ack) => {
                match progress.unacknowledged {
                    Some((seq, _)) if seq == ack.seq => progress.unacknowledged = None,
                    _ => return Err(LendError::Protocol("Ack for what was not sent")),
                }
                if !ack.error.is_empty() {
                    warn!(
                        generation = seat.generation,
                        error = ack.error,
                        "agent could not do what it was told"
                    );
                }
            }
            to_node::Message::SocketsWanted(wanted) => {
                progress.wants.push_back(want(wanted)?);
                if progress.wants.len() > MAX_WANTS {
                    return Err(LendError::Protocol("too many requests at once"));
                }
            }
            to_node::Message::Serving(proto::Serving {}) => self.hub.serving(seat),
            to_node::Message::Hello(_) => return Err(LendError::Protocol("a second Hello")),
            to_node::Message::Holding(_) => {
                return Err(LendError::Protocol("Holding after the greeting"));
            }
        }
        Ok(())
    }

    async fn tell(&self, progress: &mut Progress, event: &Event) -> Result<(), LendError> {
        match event {
            Event::Added(pod) => {
                let kinds: Vec<Kind> = pod.listeners.iter().map(|l| l.kind).collect();
                let fds: Vec<_> = pod.listeners.iter().map(|l| l.socket.as_fd()).collect();
                let message = protocol::pod_added(pod.pod.clone(), &kinds, &pod.ips);
                self.send(progress, message, &fds).await
            }
            Event::Changed(pod) => {
                let message = to_agent::Message::PodChanged(proto::PodChanged {
                    pod: Some(pod.pod.clone()),
                });
                self.send(progress, message, &[]).await
            }
            Event::Removed(uid) => {
                let message = proto::PodRemoved { uid: uid.clone() };
                self.send(progress, to_agent::Message::PodRemoved(message), &[])
                    .await
            }
            Event::SnapshotSent => {
                let message = to_agent::Message::SnapshotSent(proto::SnapshotSent {});
                self.send(progress, message, &[]).await
            }
            Event::Drain => {
                let message = to_agent::Message::Drain(proto::Drain {});
                self.send(progress, message, &[]).await
            }
        }
    }

    /// Makes the sockets that are wanted.
    async fn answer(&self, want: Want) -> (to_agent::Message, Vec<OwnedFd>) {
        let lent = self.lender.lend(&want.uid, want.family, want.count).await;
        let (sockets, error) = match lent {
            Ok(sockets) => (sockets, String::new()),
            Err(error) => {
                debug!(uid = want.uid, error, "no sockets for the agent");
                (Vec::new(), error)
            }
        };
        let message = proto::Sockets {
            uid: want.uid,
            family: match want.family {
                Family::V4 => proto::Family::V4,
                Family::V6 => proto::Family::V6,
            }
            .into(),
            count: u32::try_from(sockets.len()).unwrap_or(0),
            error,
        };
        (to_agent::Message::Sockets(message), sockets)
    }

    async fn send(
        &self,
        progress: &mut Progress,
        message: to_agent::Message,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LendError> {
        progress.seq += 1;
        let message = proto::ToAgent {
            seq: progress.seq,
            message: Some(message),
        };
        let sent = timeout(PATIENCE, self.packets.send(&message.encode_to_vec(), fds)).await;
        sent.map_err(|_elapsed| LendError::Silent)??;
        progress.unacknowledged = Some((progress.seq, Instant::now() + PATIENCE));
        Ok(())
    }

    async fn next(&self) -> Result<Option<(to_node::Message, Vec<OwnedFd>)>, LendError> {
        let received = self.packets.receive().await.map_err(|error| match error {
            ReceiveError::Io(error) => LendError::Io(error),
            ReceiveError::TooLong | ReceiveError::TooManyDescriptors => LendError::Receive(error),
        })?;
        let Some(Packet { bytes, fds }) = received else {
            return Ok(None);
        };
        let message = proto::ToNode::decode(bytes.as_slice()).map_err(LendError::Garbage)?;
        let message = message
            .message
            .ok_or(LendError::Protocol("a message of an unknown kind"))?;
        Ok(Some((message, fds)))
    }
}

async fn lent(lending: &mut Option<Lending<'_>>) -> (to_agent::Message, Vec<OwnedFd>) {
    match lending {
        Some(lending) => lending.await,
        None => std::future::pending().await,
    }
}

fn want(wanted: proto::SocketsWanted) -> Result<Want, LendError> {
    let family =
        protocol::family(wanted.family()).ok_or(LendError::Protocol("sockets of no family"))?;
    let count = usize::try_from(wanted.count)
        .ok()
        .filter(|count| (1..=MAX_FDS).contains(count))
        .ok_or(LendError::Protocol("sockets wanted are not 1 to 64"))?;
    Ok(Want {
        uid: wanted.uid,
        family,
        count,
    })
}

fn match_up(
    holding: &proto::Holding,
    fds: Vec<OwnedFd>,
) -> Result<Vec<(Kind, OwnedFd)>, LendError> {
    if holding.listeners.len() != fds.len() {
        return Err(LendError::Protocol(
            "Holding names other listeners than it brings",
        ));
    }
    // A kind that this version does not know is closed and forgotten.
    let pairs = holding.listeners().zip(fds);
    Ok(pairs
        .filter_map(|(listener, fd)| Some((protocol::kind(listener)?, fd)))
        .collect())
}
