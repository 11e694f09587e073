//! Follows the controller's word about the pods of this node: `weft.node.v1.Node/WatchPods`.
//!
//! A stream that breaks is opened again, with growing waits; what was said last stays in force. A
//! record that is not understood is counted and logged, and the one before it stays. Does not
//! decide what happens to a pod: it fills `Desired` and says which pods changed.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::{info, warn};
use weft_api::{
    client::Controller,
    model::Pod,
    proto::node::{self as proto, node_client::NodeClient, pods_update::Update},
};
use weft_runtime::{backoff::Backoff, ready::Pending};

use crate::{
    metrics::Metrics,
    pods::{Pods, desired::Desired},
};

/// Waits between two attempts: soon enough that a restarted controller is found quickly, and
/// spread so that a thousand nodes do not come at once.
const MIN_WAIT: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(15);
const JITTER: f64 = 0.5;

/// Where the controller is, and how to talk to it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Host and port of the controller.
    pub controller: String,
    /// Name in the controller's certificate.
    pub controller_name: String,
    /// Trust anchors, PEM.
    pub trust_anchors: PathBuf,
    /// This node's token.
    pub token_file: PathBuf,
}

/// Follows the controller.
pub struct Control {
    /// Settings.
    pub config: Config,
    /// What is filled.
    pub desired: Arc<Desired>,
    /// Who is told what changed.
    pub pods: Arc<Pods>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Dropped when the first snapshot has come.
    pub pending: Option<Pending>,
}

impl Control {
    /// Follows until stopped.
    ///
    /// # Errors
    /// None that end it: the controller may be away for long.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(MIN_WAIT, MAX_WAIT, JITTER);
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                ended = self.follow(&mut backoff) => ended,
            };
            self.desired.set_connected(false);
            self.metrics.set_controller_connected(false);
            let wait = backoff.next(rand::random());
            match ended {
                Ok(()) => info!(retry_in = ?wait, "controller closed the stream of pods"),
                Err(error) => {
                    warn!(error = format!("{error:#}"), retry_in = ?wait, "controller is away");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn follow(&mut self, backoff: &mut Backoff) -> anyhow::Result<()> {
        let mut updates = self.open().await?;
        while let Some(update) = updates.message().await.context("stream of pods")? {
            backoff.reset();
            let Some(update) = update.update else {
                continue;
            };
            self.apply(update);
        }
        Ok(())
    }

    /// Opens the stream. Token and anchors are read every time, so that new ones are taken up.
    async fn open(&self) -> anyhow::Result<Streaming<proto::PodsUpdate>> {
        let Config {
            node,
            controller,
            controller_name,
            trust_anchors,
            token_file,
        } = &self.config;
        let anchors = tokio::fs::read(trust_anchors)
            .await
            .with_context(|| format!("read {} (--trust-anchors)", trust_anchors.display()))?;
        let token = tokio::fs::read_to_string(token_file)
            .await
            .with_context(|| format!("read {} (--token-file)", token_file.display()))?;
        let controller = Controller {
            addr: controller.clone(),
            server_name: controller_name.clone(),
            trust_anchors: Some(anchors),
            token: Some(token.trim().to_owned()),
        };
        let channel = controller.connect()?;
        let request = proto::WatchPodsRequest { node: node.clone() };
        let response = NodeClient::new(channel).watch_pods(request).await;
        let status = |status: tonic::Status| {
            anyhow::anyhow!(
                "the controller at {}: {:?}: {}",
                controller.addr,
                status.code(),
                status.message()
            )
        };
        let updates = response.map_err(status)?.into_inner();
        info!(controller = controller.addr, "connected to the controller");
        Ok(updates)
    }

    fn apply(&mut self, update: Update) {
        let changed = match update {
            Update::Snapshot(list) => {
                let changed = self.desired.replace(self.understood(list.pods));
                self.desired.set_connected(true);
                self.metrics.set_controller_connected(true);
                self.pending = None;
                info!(changed = changed.len(), "snapshot of pods");
                changed
            }
            Update::Upserted(record) => {
                let pods = self.understood(vec![record]);
                let uids = pods.iter().map(|pod| pod.uid.to_string()).collect();
                for pod in pods {
                    self.desired.upsert(pod);
                }
                uids
            }
            Update::RemovedUid(uid) => {
                self.desired.remove(&uid);
                vec![uid]
            }
        };
        if let Err(error) = self.desired.save() {
            warn!(%error, "cache of pods cannot be written");
        }
        self.pods.changed(changed);
    }

    /// The records that make sense. Of one that does not, the last good one stays.
    fn understood(&self, records: Vec<proto::Pod>) -> Vec<Pod> {
        let understand = |record: proto::Pod| {
            let uid = record.uid.clone();
            match Pod::try_from(record) {
                Ok(pod) => Some(pod),
                Err(error) => {
                    self.metrics.invalid_pod();
                    let error = weft_runtime::logging::report(&error).to_string();
                    warn!(
                        uid,
                        error, "pod record is not understood; the last good one stays"
                    );
                    Some(self.desired.find(&uid)?.as_ref().clone())
                }
            }
        };
        records.into_iter().filter_map(understand).collect()
    }
}

/// Checks that text is HOST:PORT.
///
/// # Errors
/// When it is not, with an example.
pub fn parse_controller(text: &str) -> Result<String, String> {
    let is_address = text.parse::<SocketAddr>().is_ok();
    let is_name = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains([':', '/', '@']) && port.parse::<u16>().is_ok()
    });
    if is_address || is_name {
        Ok(text.to_owned())
    } else {
        Err("expected HOST:PORT, for example linkerd-dst.linkerd.svc:8086".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_host_and_port() {
        for (text, expected) in [
            ("10.0.0.1:8086", true),
            ("[fd00::1]:8086", true),
            ("controller.linkerd.svc:8086", true),
            ("controller", false),
            (":8086", false),
            ("https://controller:8086", false),
            ("controller:99999", false),
        ] {
            assert_eq!(parse_controller(text).is_ok(), expected, "{text}");
        }
    }
}
