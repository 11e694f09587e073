//! The index and what is watched of it.
//!
//! A view is a question with a stable name: the endpoints of one service, the pods of one node.
//! All clients that ask the same share one `watch` value. After a change of the index every view
//! that somebody watches is translated again, and published if it differs.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use linkerd2_proxy_api::{
    destination::DestinationProfile, inbound::Server, outbound::OutboundPolicy,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Code;

use crate::{
    index::{Cluster, Index, ObjectProblem, Sizes},
    source::Change,
    translate::{
        EndpointSet, InboundPort, NodePods, OutboundTarget, PodMap, ProfileTarget, Refused,
        ServiceEndpoints,
    },
};

/// A question to the index whose answer can be watched.
pub trait View: Clone + Eq + Hash + Send + Sync + Sized + 'static {
    /// The answer.
    type Answer: PartialEq + Send + Sync + 'static;

    /// Answers from the index.
    ///
    /// # Errors
    /// When there is no answer; that, too, is watched.
    fn translate(&self, index: &Index) -> Result<Self::Answer, Refused>;

    /// Where views of this kind are kept.
    fn views(all: &mut Views) -> &mut ViewMap<Self>;
}

/// The latest answer.
pub type Watched<V> = Result<Arc<<V as View>::Answer>, Refused>;

/// Views of one kind that somebody watches.
pub struct ViewMap<V: View> {
    senders: HashMap<V, watch::Sender<Watched<V>>>,
    // Views without a watcher are dropped when the map has doubled since this.
    swept: usize,
}

/// Views of all kinds.
#[derive(Default)]
pub struct Views {
    endpoints: ViewMap<ServiceEndpoints>,
    profiles: ViewMap<ProfileTarget>,
    outbound: ViewMap<OutboundTarget>,
    inbound: ViewMap<InboundPort>,
    nodes: ViewMap<NodePods>,
}

/// Owner of the index and its views.
pub struct Hub {
    state: Mutex<State>,
}

struct State {
    index: Index,
    is_synced: bool,
    views: Views,
}

impl Hub {
    /// Makes a hub that knows nothing yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            state: Mutex::new(State {
                index: Index::new(cluster),
                is_synced: false,
                views: Views::default(),
            }),
        }
    }

    /// Takes what a source has read, publishes what follows, and says what is wrong with the
    /// objects. After the first call questions are answered.
    pub fn update(&self, changes: Vec<Change>) -> Vec<ObjectProblem> {
        let mut state = self.state.lock();
        let is_changed = !changes.is_empty();
        for change in changes {
            match change {
                Change::Apply(key, object) => state.index.apply(&key, &object),
                Change::Delete(key) => state.index.delete(&key),
            }
        }
        state.is_synced = true;
        let State { index, views, .. } = &mut *state;
        if is_changed {
            views.publish(index);
        }
        index.problems()
    }

    /// Watches the answer to a question.
    ///
    /// # Errors
    /// When there is no answer now.
    pub fn watch<V: View>(&self, view: &V) -> Result<watch::Receiver<Watched<V>>, Refused> {
        let mut state = self.state.lock();
        if !state.is_synced {
            return Err(not_synced());
        }
        let State { index, views, .. } = &mut *state;
        V::views(views).watch(view, index)
    }

    /// Answers a question once.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask<V: View>(&self, view: &V) -> Result<V::Answer, Refused> {
        let state = self.state.lock();
        match state.is_synced {
            true => view.translate(&state.index),
            false => Err(not_synced()),
        }
    }

    /// Whether an identity is that of a pod which runs or may yet run on a node.
    ///
    /// # Errors
    /// Before the first read.
    pub fn runs_on(&self, identity: &str, node: &str) -> Result<bool, Refused> {
        let state = self.state.lock();
        if !state.is_synced {
            return Err(not_synced());
        }
        let mut pods = state.index.pods_of_node(node);
        Ok(pods.any(|pod| {
            let own = pod.settled.identity.as_ref();
            own.is_some_and(|own| own.as_str() == identity) && !pod.service_account.contains('.')
        }))
    }

    /// How many objects are known.
    pub fn sizes(&self) -> Sizes {
        self.state.lock().index.sizes()
    }
}

impl Views {
    fn publish(&mut self, index: &Index) {
        self.endpoints.publish(index);
        self.profiles.publish(index);
        self.outbound.publish(index);
        self.inbound.publish(index);
        self.nodes.publish(index);
    }
}

impl<V: View> ViewMap<V> {
    fn watch(&mut self, view: &V, index: &Index) -> Result<watch::Receiver<Watched<V>>, Refused> {
        if let Some(sender) = self.senders.get(view)
            && sender.borrow().is_ok()
        {
            return Ok(sender.subscribe());
        }
        // A refusal makes no entry: a client that asks for nonsense costs nothing.
        let answer = Arc::new(view.translate(index)?);
        self.sweep();
        let sender = self.senders.entry(view.clone()).or_insert_with(|| {
            let (sender, _) = watch::channel(Ok(Arc::clone(&answer)));
            sender
        });
        sender.send_if_modified(|current| {
            let is_refused = current.is_err();
            if is_refused {
                *current = Ok(answer);
            }
            is_refused
        });
        Ok(sender.subscribe())
    }

    fn publish(&mut self, index: &Index) {
        self.senders.retain(|_, sender| sender.receiver_count() > 0);
        for (view, sender) in &self.senders {
            let next = view.translate(index);
            sender.send_if_modified(|current| {
                let is_same = match (&*current, &next) {
                    (Ok(current), Ok(next)) => **current == *next,
                    (Err(current), Err(next)) => current == next,
                    (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
                };
                if !is_same {
                    *current = next.map(Arc::new);
                }
                !is_same
            });
        }
    }

    fn sweep(&mut self) {
        if self.senders.len() > 2 * self.swept + 64 {
            self.senders.retain(|_, sender| sender.receiver_count() > 0);
            self.swept = self.senders.len();
        }
    }
}

impl<V: View> Default for ViewMap<V> {
    fn default() -> Self {
        Self {
            senders: HashMap::new(),
            swept: 0,
        }
    }
}

fn not_synced() -> Refused {
    Refused::new(
        Code::Unavailable,
        "the cluster's objects have not been read yet",
    )
}

macro_rules! view {
    ($view:ty, $answer:ty, $field:ident) => {
        impl View for $view {
            type Answer = $answer;

            fn translate(&self, index: &Index) -> Result<$answer, Refused> {
                Self::translate(self, index)
            }

            fn views(all: &mut Views) -> &mut ViewMap<Self> {
                &mut all.$field
            }
        }
    };
}

view!(ServiceEndpoints, EndpointSet, endpoints);
view!(ProfileTarget, DestinationProfile, profiles);
view!(OutboundTarget, OutboundPolicy, outbound);
view!(InboundPort, Server, inbound);
view!(NodePods, PodMap, nodes);
