//! What goes over `RUN_DIR/cni.sock`: one JSON request on one line, one JSON answer on one line,
//! then the connection closes.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{lend::AgentStatus, pods::status::PodStatus};

/// Longest request or answer, in bytes: the status of a full node fits.
pub const MAX_BYTES: u64 = 4 << 20;

/// Name of the socket below the run directory.
pub const SOCKET: &str = "cni.sock";

/// Folder below the run directory where the plugin leaves the ADDs of pods that it let start while
/// the daemon was away.
pub const MISSED: &str = "missed";

/// What the plugin or `weft-node status` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// A sandbox was made.
    Add(Attachment),
    /// A sandbox is gone.
    Del(Attachment),
    /// Is a sandbox as it should be?
    Check(Attachment),
    /// Could an ADD succeed?
    Ready,
    /// Only these sandboxes are left.
    Gc {
        /// Their ids.
        valid: Vec<String>,
    },
    /// What is shown to people.
    Status,
}

/// One sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// Id of the sandbox.
    pub container_id: String,
    /// Path of its network namespace; may be empty for DEL.
    pub netns: PathBuf,
    /// Interface.
    pub ifname: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Uid of the pod; empty if the runtime does not say it.
    pub pod_uid: String,
    /// Addresses that the previous plugin reported.
    pub ips: Vec<IpAddr>,
    /// The pod's cgroup, if the runtime says it.
    pub cgroup: Option<PathBuf>,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Response {
    /// Done.
    Done,
    /// Not done.
    Failed(Failure),
    /// To `Request::Status`.
    Status(NodeStatus),
}

/// Why something was not done, as the CNI specification has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Number of the error.
    pub code: u32,
    /// What happened.
    pub msg: String,
    /// More about it.
    pub details: String,
}

/// What is shown about a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// Whether the controller's stream is open.
    pub controller_connected: bool,
    /// Connected agents.
    pub agents: Vec<AgentStatus>,
    /// Pods that have a sandbox.
    pub pods: Vec<PodStatus>,
}

/// Error numbers of the CNI specification.
pub mod code {
    /// The version is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Environment or arguments are wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Standard input cannot be read or decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// It may work later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin cannot serve ADD now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Our own: the pod cannot be meshed.
    pub const NOT_MESHED: u32 = 101;
}
