//! What is shown about a pod: in `weft-node status`, in logs, as counts by state.

use std::{net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

/// Where a pod stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// In the mesh, proven.
    Meshed,
    /// Outside, and nobody asked for more.
    #[default]
    Unmeshed,
    /// Asked for, and cannot be had.
    Skipped,
    /// To be meshed, and not meshed yet.
    Failed,
    /// Waiting for the controller to say.
    Unknown,
    /// In the mesh since before this process; its listeners are being taken back.
    Adopting,
    /// On its way out.
    Leaving,
}

impl Standing {
    /// All, in the order of the status table.
    pub const ALL: [Self; 7] = [
        Self::Meshed,
        Self::Unmeshed,
        Self::Skipped,
        Self::Failed,
        Self::Unknown,
        Self::Adopting,
        Self::Leaving,
    ];

    /// Name for metrics and people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meshed => "meshed",
            Self::Unmeshed => "unmeshed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Adopting => "adopting",
            Self::Leaving => "leaving",
        }
    }
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Uid.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Where it stands.
    pub standing: Standing,
    /// Why it is not meshed, or what is wrong with it.
    pub reason: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Cookie of its network namespace, if enrolled.
    pub cookie: Option<u64>,
    /// Slot of its listeners, if enrolled.
    pub slot: Option<u32>,
    /// Its listeners.
    pub listeners: Vec<String>,
    /// What the reconciler found wrong when it last looked.
    pub faults: Vec<String>,
    /// What the guard does: `enforce`, `audit`, `off`.
    pub guard: String,
    /// Connections from before enrolment.
    pub legacy_connections: usize,
    /// Routing rules of others that come before ours.
    pub foreign_rules: usize,
    /// Since when it is enrolled.
    pub since: Option<SystemTime>,
}
