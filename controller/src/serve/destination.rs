//! Linkerd's destination API.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use linkerd2_proxy_api::destination::{
    AddrSet, DestinationProfile, GetDestination, NoEndpoints, Update, WeightedAddr,
    WeightedAddrSet, destination_server::Destination, update,
};
use serde::Deserialize;
use tonic::{Request, Response, Status, async_trait};

use super::{
    Context,
    stream::{Messages, follow},
};
use crate::translate::{EndpointSet, ProfileTarget, ServiceEndpoints};

pub(super) struct Service {
    context: Context,
}

/// What a client says about itself. Anything else in the token is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContextToken {
    #[serde(default)]
    node_name: String,
}

impl Service {
    pub(super) const fn new(context: Context) -> Self {
        Self { context }
    }

    fn endpoints(&self, request: &GetDestination) -> Result<Messages<Update>, Status> {
        let view = ServiceEndpoints::parse(&request.path, &self.context.cluster_domain)?;
        let watched = self.context.hub.watch(&view)?;
        let token: ContextToken = serde_json::from_str(&request.context_token).unwrap_or_default();
        let mut sent = Sent {
            node: token.node_name,
            endpoints: None,
        };
        let open = self.context.metrics.open_stream("Destination.Get");
        let stop = self.context.stop.clone();
        Ok(follow::<ServiceEndpoints, _>(
            watched,
            stop,
            open,
            Some(no_endpoints(false)),
            move |set| sent.updates(set),
        ))
    }

    fn profile(&self, request: &GetDestination) -> Result<Messages<DestinationProfile>, Status> {
        let view = ProfileTarget::parse(&request.path, &self.context.cluster_domain)?;
        let watched = self.context.hub.watch(&view)?;
        let open = self.context.metrics.open_stream("Destination.GetProfile");
        let stop = self.context.stop.clone();
        Ok(follow::<ProfileTarget, _>(
            watched,
            stop,
            open,
            None,
            |profile| vec![DestinationProfile::clone(profile)],
        ))
    }
}

#[async_trait]
impl Destination for Service {
    type GetStream = Messages<Update>;
    type GetProfileStream = Messages<DestinationProfile>;

    async fn get(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let result = self.endpoints(request.get_ref());
        let metrics = &self.context.metrics;
        metrics.counted("Destination.Get", result.map(Response::new))
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        let result = self.profile(request.get_ref());
        let metrics = &self.context.metrics;
        metrics.counted("Destination.GetProfile", result.map(Response::new))
    }
}

/// What one client has been told.
struct Sent {
    node: String,
    endpoints: Option<BTreeMap<SocketAddr, WeightedAddr>>,
}

impl Sent {
    /// The messages that lead from what was told to the present set.
    fn updates(&mut self, set: &Arc<EndpointSet>) -> Vec<Update> {
        let visible = set.endpoints.iter().filter(|target| {
            !set.is_node_local || target.node.as_deref() == Some(self.node.as_str())
        });
        let next: BTreeMap<_, _> = visible
            .map(|target| (target.addr, target.message.clone()))
            .collect();
        let is_first = self.endpoints.is_none();
        let previous = self.endpoints.take().unwrap_or_default();
        let added: Vec<_> = next
            .iter()
            .filter(|(addr, message)| previous.get(addr) != Some(message))
            .map(|(_, message)| message.clone())
            .collect();
        let removed: Vec<_> = previous
            .keys()
            .filter(|addr| !next.contains_key(addr))
            .map(|addr| (*addr).into())
            .collect();
        let is_empty = next.is_empty();
        self.endpoints = Some(next);
        if is_empty {
            let is_new = is_first || !previous.is_empty();
            return Vec::from_iter(is_new.then(|| no_endpoints(true)));
        }
        // Added first: a client must never see an empty set between the two.
        let add = (!added.is_empty()).then(|| {
            update::Update::Add(WeightedAddrSet {
                addrs: added,
                metric_labels: set.labels.clone(),
            })
        });
        let remove = (!removed.is_empty()).then_some(AddrSet { addrs: removed });
        add.into_iter()
            .chain(remove.map(update::Update::Remove))
            .map(|update| Update {
                update: Some(update),
            })
            .collect()
    }
}

fn no_endpoints(exists: bool) -> Update {
    Update {
        update: Some(update::Update::NoEndpoints(NoEndpoints { exists })),
    }
}
