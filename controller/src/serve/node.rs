//! `weft.node.v1`: what a node needs to know. Every call names its node by a join token.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};
use weft_api::proto::node::{
    PodList, PodsUpdate, TrustBundle, WatchPodsRequest, WatchTrustBundleRequest, node_server::Node,
    pods_update,
};

use super::{
    Context,
    stream::{Messages, follow, follow_value},
};
use crate::translate::{NodePods, PodMap};

pub(super) struct Service {
    context: Context,
}

impl Service {
    pub(super) const fn new(context: Context) -> Self {
        Self { context }
    }

    /// The node that the caller's token was made for.
    fn caller<T>(&self, request: &Request<T>) -> Result<Arc<str>, Status> {
        let header = request.metadata().get("authorization");
        let header = header.ok_or_else(|| {
            Status::unauthenticated("metadata authorization: Bearer <join token> is missing")
        })?;
        let token = header
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("authorization is not Bearer <join token>"))?;
        let verified = self.context.tokens.verify(token.trim());
        verified.map_err(|error| Status::unauthenticated(error.to_string()))
    }

    fn pods(&self, request: &Request<WatchPodsRequest>) -> Result<Messages<PodsUpdate>, Status> {
        let node = self.caller(request)?;
        let wanted = &request.get_ref().node;
        if *wanted != *node {
            return Err(Status::permission_denied(format!(
                "node {wanted:?} was asked for with the token of node {node:?}"
            )));
        }
        let watched = self.context.hub.watch(&NodePods(node))?;
        let open = self.context.metrics.open_stream("Node.WatchPods");
        let stop = self.context.stop.clone();
        let mut sent: Option<Arc<PodMap>> = None;
        Ok(follow::<NodePods, _>(
            watched,
            stop,
            open,
            None,
            move |pods| {
                let updates = updates(sent.as_deref(), pods);
                sent = Some(Arc::clone(pods));
                updates
            },
        ))
    }

    fn bundle<T>(&self, request: &Request<T>) -> Result<Messages<TrustBundle>, Status> {
        self.caller(request)?;
        let open = self.context.metrics.open_stream("Node.WatchTrustBundle");
        let bundle = self.context.ca.watch_bundle();
        let stop = self.context.stop.clone();
        Ok(follow_value(bundle, stop, open, |pem| TrustBundle {
            pem: pem.to_string(),
        }))
    }
}

#[async_trait]
impl Node for Service {
    type WatchPodsStream = Messages<PodsUpdate>;
    type WatchTrustBundleStream = Messages<TrustBundle>;

    async fn watch_pods(
        &self,
        request: Request<WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let result = self.pods(&request);
        let metrics = &self.context.metrics;
        metrics.counted("Node.WatchPods", result.map(Response::new))
    }

    async fn watch_trust_bundle(
        &self,
        request: Request<WatchTrustBundleRequest>,
    ) -> Result<Response<Self::WatchTrustBundleStream>, Status> {
        let result = self.bundle(&request);
        let metrics = &self.context.metrics;
        metrics.counted("Node.WatchTrustBundle", result.map(Response::new))
    }
}

/// The messages that lead from what was sent to the present pods.
fn updates(sent: Option<&PodMap>, pods: &PodMap) -> Vec<PodsUpdate> {
    let message = |update| PodsUpdate {
        update: Some(update),
    };
    let snapshot = || {
        let pods = pods.values().cloned().collect();
        vec![message(pods_update::Update::Snapshot(PodList { pods }))]
    };
    let Some(sent) = sent else {
        return snapshot();
    };
    let removed = sent.keys().filter(|uid| !pods.contains_key(*uid));
    let removed = removed.map(|uid| message(pods_update::Update::RemovedUid(uid.clone())));
    let upserted = pods
        .iter()
        .filter(|(uid, pod)| sent.get(*uid) != Some(pod))
        .map(|(_, pod)| message(pods_update::Update::Upserted(pod.clone())));
    // Removed first: a new pod may have the address of one that is gone.
    let updates: Vec<_> = removed.chain(upserted).collect();
    match updates.len() > pods.len() + 1 {
        true => snapshot(),
        false => updates,
    }
}

#[cfg(test)]
mod tests {
    use weft_api::proto::node::Pod;

    use super::*;

    fn pods(names: &[(&str, &str)]) -> PodMap {
        let pod = |(uid, name): &(&str, &str)| {
            let pod = Pod {
                uid: (*uid).to_owned(),
                name: (*name).to_owned(),
                ..Pod::default()
            };
            ((*uid).to_owned(), pod)
        };
        names.iter().map(pod).collect()
    }

    fn show(updates: Vec<PodsUpdate>) -> Vec<String> {
        let show = |update: PodsUpdate| match update.update.unwrap() {
            pods_update::Update::Snapshot(list) => format!("all {}", list.pods.len()),
            pods_update::Update::Upserted(pod) => format!("+{}", pod.name),
            pods_update::Update::RemovedUid(uid) => format!("-{uid}"),
        };
        updates.into_iter().map(show).collect()
    }

    #[test]
    fn a_client_that_was_slow_gets_what_leads_to_the_present_state() {
        let before = pods(&[("1", "a"), ("2", "b"), ("3", "c")]);
        for (after, expected) in [
            (before.clone(), vec![]),
            (
                pods(&[("1", "a"), ("2", "b2"), ("4", "d")]),
                vec!["-3", "+b2", "+d"],
            ),
            (pods(&[("9", "z")]), vec!["all 1"]),
            (pods(&[]), vec!["all 0"]),
        ] {
            assert_eq!(show(updates(Some(&before), &after)), expected);
        }
        assert_eq!(show(updates(None, &before)), ["all 3"]);
    }
}
