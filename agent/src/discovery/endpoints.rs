//! Endpoint sets, fed by `Destination.Get`; one for each authority, shared by all pods of the node.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    ops::ControlFlow,
    sync::{Arc, Weak},
    time::Duration,
};

use linkerd2_proxy_api::destination::{
    GetDestination, Update, destination_client::DestinationClient, update,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    client::Client,
    convert::{self, Invalid},
    model::{Endpoint, EndpointSet},
    report::Reporter,
    stream::{Event, Follow},
};
use crate::metrics::Stream;

/// Endpoint sets by authority. A set lives as long as somebody holds it.
#[derive(Default)]
pub(super) struct EndpointSets(Mutex<HashMap<Arc<str>, Weak<EndpointSet>>>);

impl EndpointSets {
    /// The set of an authority; if there is none, a new one, and `start` gets what feeds it.
    pub(super) fn find_or_start(
        &self,
        authority: &Arc<str>,
        parent: &CancellationToken,
        start: impl FnOnce(Weak<EndpointSet>, CancellationToken),
    ) -> Arc<EndpointSet> {
        let mut sets = self.0.lock();
        if let Some(set) = sets.get(authority).and_then(Weak::upgrade) {
            return set;
        }
        let stop = parent.child_token();
        let guard = stop.clone().drop_guard();
        let set = Arc::new(EndpointSet::new(Arc::clone(authority), Some(guard)));
        sets.insert(Arc::clone(authority), Arc::downgrade(&set));
        start(Arc::downgrade(&set), stop);
        set
    }

    /// Forgets sets that nobody holds.
    pub(super) fn forget_dropped(&self) {
        self.0.lock().retain(|_, set| set.strong_count() > 0);
    }

    /// Every set that is alive.
    pub(super) fn snapshot(&self) -> Vec<Arc<EndpointSet>> {
        self.0.lock().values().filter_map(Weak::upgrade).collect()
    }
}

/// Keeps a set up to date until nobody holds it.
pub(super) async fn watch(
    client: Client,
    authority: Arc<str>,
    context_token: String,
    set: Weak<EndpointSet>,
    stop: CancellationToken,
) {
    let mut view = View::default();
    let mut report = Reporter::new(&client.metrics, Stream::Destination, &authority);
    let follow = Follow {
        stream: Stream::Destination,
        // Linkerd's controller is silent about a service without endpoints.
        expects_message: false,
        ask_again: Duration::from_secs(10),
    };
    let open = || async {
        let request = client.request(GetDestination {
            scheme: String::new(),
            path: authority.to_string(),
            context_token: context_token.clone(),
        });
        let mut destinations = DestinationClient::new(client.channel.clone());
        destinations.get(request.await?).await
    };
    let apply = |event: Event<Update>| {
        let Some(set) = set.upgrade() else {
            return ControlFlow::Break(());
        };
        match event {
            Event::Message { message, first } => match view.apply(message, first) {
                Ok(bad) => {
                    set.publish(view.list(), view.exists);
                    match bad {
                        None => report.applied(),
                        Some(error) => report.refused(error),
                    }
                }
                Err(error) => report.refused(error),
            },
            // Known endpoints stay: a controller that has just started may not know yet.
            Event::Refused(_) if set.load().version == 0 => set.publish(Vec::new(), Some(false)),
            Event::Refused(_) => {}
        }
        ControlFlow::Continue(())
    };
    follow.run(&client, &stop, open, apply).await;
}

/// What the updates of a stream add up to.
#[derive(Default)]
struct View {
    endpoints: BTreeMap<SocketAddr, Arc<Endpoint>>,
    exists: Option<bool>,
}

impl View {
    /// Applies one update; `first` of a new stream replaces what older streams said.
    ///
    /// Returns what was wrong with an endpoint that was left out.
    fn apply(&mut self, update: Update, first: bool) -> Result<Option<Invalid>, Invalid> {
        let mut bad = None;
        match update.update.ok_or(Invalid::Missing("update"))? {
            update::Update::Add(set) => {
                let former = match first {
                    true => std::mem::take(&mut self.endpoints),
                    false => BTreeMap::new(),
                };
                for addr in set.addrs {
                    match convert::endpoint(addr, &set.metric_labels) {
                        Ok(endpoint) => self.add(endpoint, &former),
                        Err(error) => bad = Some(error),
                    }
                }
                self.exists = Some(true);
            }
            update::Update::Remove(set) => {
                let removed: Result<Vec<_>, _> =
                    set.addrs.into_iter().map(convert::address).collect();
                for addr in removed? {
                    self.endpoints.remove(&addr);
                }
                self.exists = Some(true);
            }
            update::Update::NoEndpoints(none) => {
                self.endpoints.clear();
                self.exists = Some(none.exists);
            }
        }
        Ok(bad)
    }

    /// Adds an endpoint. One that says the same stays the same, and a changed one keeps its load.
    fn add(&mut self, mut endpoint: Endpoint, former: &BTreeMap<SocketAddr, Arc<Endpoint>>) {
        let known = self
            .endpoints
            .get(&endpoint.addr)
            .or(former.get(&endpoint.addr));
        let endpoint = match known {
            Some(known) if known.is_same(&endpoint) => Arc::clone(known),
            Some(known) => {
                endpoint.load = Arc::clone(&known.load);
                Arc::new(endpoint)
            }
            None => Arc::new(endpoint),
        };
        self.endpoints.insert(endpoint.addr, endpoint);
    }

    fn list(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.values().cloned().collect()
    }
}
