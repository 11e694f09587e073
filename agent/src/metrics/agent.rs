//! What the agent counts about itself: `weft_*`.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Which watch of the controller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// `Destination.Get`
    Destination,
    /// `Destination.GetProfile`
    Profile,
    /// `OutboundPolicies.Watch`
    OutboundPolicy,
    /// `InboundServerPolicies.WatchPort`
    InboundPolicy,
    /// `Node.WatchTrustBundle`
    TrustBundle,
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Update {
    /// It is in use.
    Applied,
    /// It could not be understood; the last good one stays.
    Refused,
}

impl Stream {
    /// The stream as metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Profile => "profile",
            Self::OutboundPolicy => "outbound_policy",
            Self::InboundPolicy => "inbound_policy",
            Self::TrustBundle => "trust_bundle",
        }
    }
}

impl Update {
    /// The result as metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
    }
}

impl EncodeLabelValue for Stream {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.label().encode(encoder)
    }
}

impl EncodeLabelValue for Update {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.label().encode(encoder)
    }
}

/// Labels of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabels {
    /// Which watch.
    pub stream: Stream,
}

/// Labels of an update.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpdateLabels {
    /// Which watch.
    pub stream: Stream,
    /// What became of it.
    pub result: Update,
}

/// What the agent counts about itself.
#[derive(Clone, Debug, Default)]
pub struct AgentMetrics {
    /// Pods served now.
    pub pods: Gauge,
    /// Times that the connection to the node daemon was opened anew.
    pub lend_reconnects: Counter,
    /// Identities with a valid certificate.
    pub certificates: Gauge,
    /// Streams from the controller that are open.
    pub streams: Family<StreamLabels, Gauge>,
    /// Times that a stream broke or could not be opened.
    pub stream_failures: Family<StreamLabels, Counter>,
    /// Messages on streams.
    pub updates: Family<UpdateLabels, Counter>,
    /// Outbound targets and inbound ports that are kept up to date.
    pub watches: Family<StreamLabels, Gauge>,
    /// Outbound targets that were forgotten because there were too many.
    pub evictions: Counter,
    /// Trust bundles taken into use.
    pub trust_bundles: Counter,
}

impl AgentMetrics {
    /// Registers everything.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let registry = registry.sub_registry_with_prefix("weft");
        registry.register("pods", "Pods served", this.pods.clone());
        registry.register(
            "lend_reconnects",
            "Times that the connection to the node daemon was opened anew",
            this.lend_reconnects.clone(),
        );
        registry.register(
            "certificates",
            "Identities of this node that have a valid certificate",
            this.certificates.clone(),
        );
        registry.register(
            "discovery_streams",
            "Open streams from the controller",
            this.streams.clone(),
        );
        registry.register(
            "discovery_stream_failures",
            "Times that a stream from the controller broke or could not be opened",
            this.stream_failures.clone(),
        );
        registry.register(
            "discovery_updates",
            "Messages of the controller, by what became of them",
            this.updates.clone(),
        );
        registry.register(
            "discovery_watches",
            "Things that are kept up to date by the controller",
            this.watches.clone(),
        );
        registry.register(
            "discovery_evictions",
            "Outbound targets that were forgotten because there were too many",
            this.evictions.clone(),
        );
        registry.register(
            "trust_bundles",
            "Trust bundles taken into use",
            this.trust_bundles.clone(),
        );
        this
    }
}
