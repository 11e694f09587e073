//! The trust bundle, fed by `Node.WatchTrustBundle`.

use std::{ops::ControlFlow, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use weft_api::proto::node::{TrustBundle, WatchTrustBundleRequest, node_client::NodeClient};

use super::{
    client::Client,
    stream::{Event, Follow},
};
use crate::metrics::{Stream, Update, UpdateLabels};

/// Hands each new bundle to `install`; one that it refuses changes nothing.
pub(super) async fn watch(
    client: &Client,
    mut install: impl FnMut(&str) -> anyhow::Result<()>,
    stop: &CancellationToken,
) {
    let follow = Follow {
        stream: Stream::TrustBundle,
        expects_message: true,
        ask_again: Duration::from_secs(10),
    };
    let open = || async {
        let request = client.request(WatchTrustBundleRequest {});
        NodeClient::new(client.channel.clone())
            .watch_trust_bundle(request.await?)
            .await
    };
    let mut known = String::new();
    let apply = |event: Event<TrustBundle>| {
        let bundle = match event {
            Event::Message { message, .. } => message.pem,
            Event::Refused(code) => {
                warn!(?code, "controller gives no trust bundle");
                return ControlFlow::Continue(());
            }
        };
        if bundle == known {
            return ControlFlow::Continue(());
        }
        let result = match install(&bundle) {
            Ok(()) => {
                debug!("trust bundle in use");
                client.metrics.trust_bundles.inc();
                known = bundle;
                Update::Applied
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "trust bundle refused");
                Update::Refused
            }
        };
        let labels = UpdateLabels {
            stream: Stream::TrustBundle,
            result,
        };
        client.metrics.updates.get_or_create(&labels).inc();
        ControlFlow::Continue(())
    };
    follow.run(client, stop, open, apply).await;
}
