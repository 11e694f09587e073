//! Knows every meshed pod and every connected agent, and tells each agent what it has to know.
//!
//! The newest agent that has said `Serving` accepts; older ones are told to drain. A pod is
//! announced to all agents that do not drain, a removal to all. Queues are bounded: an agent that
//! does not keep up is disconnected, and gets everything again when it comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::{info, warn};
use weft_api::proto::node::Pod;

use crate::pods::{enrol::Listener, record::write_whole};

/// Events that may wait for one agent, beyond the snapshot.
const BACKLOG: usize = 1024;

/// A meshed pod as agents see it.
#[derive(Clone, Debug)]
pub struct Announced {
    /// The pod's record.
    pub pod: Pod,
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Its addresses as the kernel has them.
    pub ips: Vec<IpAddr>,
}

/// Something an agent is to be told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A pod is meshed, or has other listeners.
    Added(Arc<Announced>),
    /// A pod's record has changed.
    Changed(Arc<Announced>),
    /// A pod is not meshed any more.
    Removed(String),
    /// All pods that are meshed at connecting were announced.
    SnapshotSent,
    /// A newer agent serves.
    Drain,
}

/// A connected agent, for status.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentStatus {
    /// Its generation.
    pub generation: u64,
    /// Whether it has said that it serves.
    pub serving: bool,
    /// Whether it was told to drain.
    pub draining: bool,
}

/// See the module.
pub struct Hub {
    state: Mutex<State>,
    /// Where the last generation that was given out is kept over restarts.
    file: PathBuf,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Arc<Announced>>,
    agents: BTreeMap<u64, Agent>,
    last_generation: u64,
    last_connection: u64,
}

struct Agent {
    connection: u64,
    events: mpsc::Sender<Event>,
    serving: bool,
    draining: bool,
}

/// An agent's place in the hub.
pub(super) struct Seat {
    /// The agent's generation.
    pub(super) generation: u64,
    connection: u64,
    /// What it is to be told; ends when the hub gives it up.
    pub(super) events: mpsc::Receiver<Event>,
}

impl Hub {
    /// Makes a hub that keeps its count of generations in a file.
    pub fn new(file: PathBuf) -> Self {
        let last_generation = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        Self {
            state: Mutex::new(State {
                last_generation,
                ..State::default()
            }),
            file,
        }
    }

    /// Makes a pod known to agents, or what has changed about it.
    pub fn announce(&self, announced: Announced) {
        let announced = Arc::new(announced);
        let uid = announced.pod.uid.clone();
        let mut state = self.state.lock();
        let before = state.pods.insert(uid, Arc::clone(&announced));
        let is_new = before.is_none_or(|before| !has_same_sockets(&before, &announced));
        state.tell(|agent| match (is_new, agent.draining) {
            (true, false) => Some(Event::Added(Arc::clone(&announced))),
            (true, true) => None,
            (false, _) => Some(Event::Changed(Arc::clone(&announced))),
        });
    }

    /// Tells agents that a pod is gone. Unknown pods are no error.
    pub fn withdraw(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.pods.remove(uid).is_some() {
            state.tell(|_agent| Some(Event::Removed(uid.to_owned())));
        }
    }

    /// Connected agents, oldest first.
    pub fn agents(&self) -> Vec<AgentStatus> {
        let state = self.state.lock();
        let status = state.agents.iter().map(|(generation, agent)| AgentStatus {
            generation: *generation,
            serving: agent.serving,
            draining: agent.draining,
        });
        status.collect()
    }

    /// Seats an agent: the snapshot is in its queue already. `previous` is the generation that it
    /// says it had; it keeps that if it was ever given out. One that drains already hears only of
    /// the pods that it holds.
    pub(super) fn connect(&self, previous: u64, draining: Option<&BTreeSet<String>>) -> Seat {
        let mut state = self.state.lock();
        let generation = if (1..=state.last_generation).contains(&previous) {
            previous
        } else {
            state.last_generation += 1;
            self.keep_generation(state.last_generation);
            state.last_generation
        };
        state.last_connection += 1;
        let connection = state.last_connection;
        let (sender, events) = mpsc::channel(state.pods.len() + BACKLOG);
        let holds = |uid: &String| draining.is_none_or(|held| held.contains(uid));
        let pods = state.pods.iter().filter(|(uid, _)| holds(uid));
        let snapshot = pods.map(|(_, pod)| Event::Added(Arc::clone(pod)));
        for event in snapshot.chain([Event::SnapshotSent]) {
            // The channel was made large enough just now.
            sender.try_send(event).ok();
        }
        let agent = Agent {
            connection,
            events: sender,
            serving: false,
            draining: draining.is_some(),
        };
        if state.agents.insert(generation, agent).is_some() {
            warn!(
                generation,
                "agent connected again before its old connection ended"
            );
        }
        Seat {
            generation,
            connection,
            events,
        }
    }

    /// Notes that an agent serves, and tells those that are to drain.
    pub(super) fn serving(&self, seat: &Seat) {
        let mut state = self.state.lock();
        if let Some(agent) = state.agents.get_mut(&seat.generation)
            && agent.connection == seat.connection
        {
            agent.serving = true;
        }
        let newest = state
            .agents
            .iter()
            .filter(|(_, agent)| agent.serving && !agent.draining)
            .map(|(generation, _)| *generation)
            .next_back();
        let Some(newest) = newest else { return };
        info!(generation = newest, "agent serves");
        for (generation, agent) in state.agents.range_mut(..newest) {
            if !agent.draining {
                info!(generation, "older agent is told to drain");
                agent.draining = true;
                agent.events.try_send(Event::Drain).ok();
            }
        }
    }

    /// Frees an agent's place.
    pub(super) fn disconnect(&self, seat: &Seat) {
        let mut state = self.state.lock();
        let is_same = |agent: &Agent| agent.connection == seat.connection;
        if state.agents.get(&seat.generation).is_some_and(is_same) {
            state.agents.remove(&seat.generation);
        }
    }

    fn keep_generation(&self, generation: u64) {
        if let Err(error) = write_whole(&self.file, generation.to_string().as_bytes()) {
            warn!(%error, path = %self.file.display(), "the count of agent generations cannot be kept");
        }
    }
}

impl State {
    fn tell(&mut self, event: impl Fn(&Agent) -> Option<Event>) {
        self.agents.retain(|generation, agent| {
            let Some(event) = event(agent) else {
                return true;
            };
            let kept = agent.events.try_send(event).is_ok();
            if !kept {
                warn!(generation, "agent does not keep up; it is disconnected");
            }
            kept
        });
    }
}

fn has_same_sockets(before: &Announced, after: &Announced) -> bool {
    let cookies = |announced: &Announced| -> Vec<u64> {
        announced
            .listeners
            .iter()
            .map(|listener| listener.cookie)
            .collect()
    };
    cookies(before) == cookies(after) && before.ips == after.ips
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(uid: &str) -> Announced {
        Announced {
            pod: Pod {
                uid: uid.to_owned(),
                ..Pod::default()
            },
            listeners: Vec::new(),
            ips: Vec::new(),
        }
    }

    fn drain(seat: &mut Seat) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(event) = seat.events.try_recv() {
            names.push(match event {
                Event::Added(pod) => format!("added {}", pod.pod.uid),
                Event::Changed(pod) => format!("changed {}", pod.pod.uid),
                Event::Removed(uid) => format!("removed {uid}"),
                Event::SnapshotSent => "snapshot".to_owned(),
                Event::Drain => "drain".to_owned(),
            });
        }
        names
    }

    fn hub() -> (Hub, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Hub::new(folder.path().join("generation")), folder)
    }

    #[test]
    fn an_agent_gets_the_snapshot_and_then_what_happens() {
        let (hub, _folder) = hub();
        hub.announce(announced("a"));
        let mut seat = hub.connect(0, None);
        hub.announce(announced("b"));
        hub.announce(announced("b"));
        hub.withdraw("a");
        hub.withdraw("a");
        assert_eq!(
            drain(&mut seat),
            ["added a", "snapshot", "added b", "changed b", "removed a"]
        );
    }

    #[test]
    fn the_newest_that_serves_accepts_and_older_ones_drain() {
        let (hub, _folder) = hub();
        let (mut old, mut new) = (hub.connect(0, None), hub.connect(0, None));
        assert_eq!((old.generation, new.generation), (1, 2));
        hub.serving(&old);
        assert_eq!(drain(&mut old), ["snapshot"]);
        hub.serving(&new);
        assert_eq!(drain(&mut old), ["drain"]);
        assert_eq!(drain(&mut new), ["snapshot"]);
        hub.announce(announced("a"));
        hub.withdraw("a");
        assert_eq!(drain(&mut old), ["removed a"]);
        assert_eq!(drain(&mut new), ["added a", "removed a"]);
    }

    #[test]
    fn generations_are_kept_over_reconnects_and_restarts() {
        let (hub, folder) = hub();
        let first = hub.connect(0, None);
        let second = hub.connect(0, None);
        hub.disconnect(&first);
        let hub = Hub::new(folder.path().join("generation"));
        let mut newer = hub.connect(second.generation, None);
        let mut older = hub.connect(first.generation, None);
        assert_eq!((older.generation, newer.generation), (1, 2));
        hub.serving(&newer);
        hub.serving(&older);
        assert_eq!(drain(&mut older), ["snapshot", "drain"]);
        assert_eq!(drain(&mut newer), ["snapshot"]);
        assert_eq!(hub.connect(99, None).generation, 3, "never given out");
    }

    #[test]
    fn a_draining_agent_hears_of_what_it_holds_only() {
        let (hub, _folder) = hub();
        hub.announce(announced("a"));
        hub.announce(announced("b"));
        let held = BTreeSet::from(["b".to_owned(), "gone".to_owned()]);
        let mut seat = hub.connect(0, Some(&held));
        assert_eq!(drain(&mut seat), ["added b", "snapshot"]);
    }

    #[test]
    fn an_agent_that_does_not_keep_up_is_given_up() {
        let (hub, _folder) = hub();
        let mut slow = hub.connect(0, None);
        for _ in 0..=BACKLOG {
            hub.announce(announced("a"));
        }
        assert_eq!(hub.agents(), []);
        while slow.events.try_recv().is_ok() {}
        assert!(matches!(
            slow.events.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ));
    }
}
