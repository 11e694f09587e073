//! Command line and settings: `Args` as typed, `Config` as checked.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use weft_api::model::Guard;
use weft_runtime::logging;

use crate::{
    control::{self, parse_controller},
    kernel::{self, Settings, cgroup2_mount},
    pods::{self, rules::Routing},
};

/// Numbers of the policy route; see `docs/` on what else uses them.
const TABLE: u32 = 1033;
const PREFERENCE: u32 = 100;

/// kubelet gives up on a CNI call much later, but a pod's start should not hang.
const ADD_BUDGET: Duration = Duration::from_secs(2);

/// Weft's node daemon: captures the connections of meshed pods and lends their sockets to the agent.
#[derive(Debug, Parser)]
#[command(name = "weft-node", version, after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  weft-node preflight
  weft-node run --node-name n1 --controller 10.0.0.1:8086 \\
      --trust-anchors /etc/weft/trust-anchors.pem --token-file /etc/weft/token
  weft-node status
  weft-node cleanup";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    Run(Box<RunArgs>),
    /// Look at everything that the daemon needs from this machine.
    Preflight(PreflightArgs),
    /// Ask the running daemon about every pod.
    Status(StatusArgs),
    /// Remove everything that the daemon leaves in the kernel when it stops.
    Cleanup(CleanupArgs),
}

/// Where the kernel side lives.
#[derive(Clone, Debug, clap::Args)]
pub struct KernelArgs {
    /// Directory on a bpffs for what outlives the daemon.
    #[arg(long, env = "WEFT_BPFFS", default_value = "/sys/fs/bpf/weft")]
    bpffs: PathBuf,
    /// Directory of cgroup v2 below which all pods run; the root of cgroup v2 if not given.
    #[arg(long, env = "WEFT_CGROUP")]
    cgroup: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Name of this node, as the controller knows it.
    #[arg(long, env = "WEFT_NODE_NAME")]
    node_name: String,
    /// Host and port of the controller.
    #[arg(long, env = "WEFT_CONTROLLER", value_parser = parse_controller)]
    controller: String,
    /// Name in the controller's certificate.
    #[arg(
        long,
        env = "WEFT_CONTROLLER_NAME",
        default_value = "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local"
    )]
    controller_name: String,
    /// PEM file of the certificates by which the controller is known.
    #[arg(long, env = "WEFT_TRUST_ANCHORS")]
    trust_anchors: PathBuf,
    /// File with this node's token.
    #[arg(long, env = "WEFT_TOKEN_FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    run_dir: RunDirArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    /// Address of the admin server: /metrics, /ready, /live.
    #[arg(long, env = "WEFT_ADMIN_ADDR", default_value = "127.0.0.1:9991")]
    admin_addr: SocketAddr,
    /// The most that the egress guard does, whatever pods ask for.
    #[arg(long, env = "WEFT_GUARD", value_enum, default_value = "enforce")]
    guard: GuardArg,
    /// User whose processes may borrow sockets, besides root and the daemon's own.
    #[arg(long, env = "WEFT_AGENT_UID")]
    agent_uid: Option<u32>,
    /// Namespaces whose pods start without the mesh when the controller has not said anything about
    /// them: those that the controller itself needs.
    #[arg(
        long,
        env = "WEFT_NEVER_WAIT_FOR",
        value_delimiter = ',',
        default_value = "kube-system,linkerd"
    )]
    never_wait_for: Vec<String>,
    /// Seconds that open connections of a pod may go on when it leaves the mesh.
    #[arg(long, env = "WEFT_LEAVE_GRACE", default_value = "30")]
    leave_grace: u64,
    /// Cut the connections that a pod had before it was enrolled. They are outside the mesh.
    #[arg(long, env = "WEFT_CUT_LEGACY")]
    cut_legacy: bool,
    #[command(flatten)]
    logging: logging::Args,
}

/// Where the daemon keeps sockets and records.
#[derive(Clone, Debug, clap::Args)]
pub struct RunDirArgs {
    /// Directory of the daemon's sockets and records.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
}

/// Arguments of `preflight`.
#[derive(Clone, Debug, clap::Args)]
pub struct PreflightArgs {
    #[command(flatten)]
    kernel: KernelArgs,
}

/// Arguments of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Where the daemon is.
    #[command(flatten)]
    pub run_dir: RunDirArgs,
    /// How to show it.
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
}

/// Arguments of `cleanup`.
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {
    #[command(flatten)]
    run_dir: RunDirArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// How status is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GuardArg {
    Off,
    Audit,
    Enforce,
}

/// Checked settings of the daemon.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process log.
    pub logging: logging::Args,
    /// The kernel side.
    pub kernel: kernel::KernelConfig,
    /// The policy route.
    pub routing: Routing,
    /// The controller.
    pub control: control::Config,
    /// Enrolment.
    pub pods: pods::Config,
    /// The admin server.
    pub admin_addr: SocketAddr,
    /// Users who may borrow sockets.
    pub uids: Vec<u32>,
    /// Namespaces that never wait for the controller.
    pub never_wait_for: Vec<String>,
}

impl KernelArgs {
    /// The kernel side's settings.
    ///
    /// # Errors
    /// When no cgroup is given and none is mounted.
    pub fn config(self) -> anyhow::Result<kernel::KernelConfig> {
        let cgroup = self.cgroup.or_else(cgroup2_mount).ok_or_else(|| {
            anyhow::anyhow!("cgroup v2 is not mounted; mount it, or give --cgroup its directory")
        })?;
        Ok(kernel::KernelConfig {
            bpffs: self.bpffs,
            cgroup,
            settings: Settings::default(),
        })
    }
}

impl PreflightArgs {
    /// The kernel side's settings.
    ///
    /// # Errors
    /// When no cgroup is given and none is mounted.
    pub fn config(self) -> anyhow::Result<kernel::KernelConfig> {
        self.kernel.config()
    }
}

impl CleanupArgs {
    /// Run directory and the kernel side's settings.
    ///
    /// # Errors
    /// When no cgroup is given and none is mounted.
    pub fn parts(self) -> anyhow::Result<(PathBuf, kernel::KernelConfig)> {
        Ok((self.run_dir.run_dir, self.kernel.config()?))
    }
}

/// The policy route that goes with the kernel side's mark.
pub const fn routing(settings: Settings) -> Routing {
    Routing {
        mark: settings.mark(),
        mask: settings.mask(),
        table: TABLE,
        preference: PREFERENCE,
    }
}

impl TryFrom<RunArgs> for Config {
    type Error = anyhow::Error;

    fn try_from(args: RunArgs) -> anyhow::Result<Self> {
        let kernel = args.kernel.config()?;
        let mut uids = vec![0, rustix::process::geteuid().as_raw()];
        uids.extend(args.agent_uid);
        Ok(Self {
            logging: args.logging,
            routing: routing(kernel.settings),
            kernel,
            control: control::Config {
                node: args.node_name,
                controller: args.controller,
                controller_name: args.controller_name,
                trust_anchors: args.trust_anchors,
                token_file: args.token_file,
            },
            pods: pods::Config {
                guard: match args.guard {
                    GuardArg::Off => Guard::Off,
                    GuardArg::Audit => Guard::Audit,
                    GuardArg::Enforce => Guard::Enforce,
                },
                budget: ADD_BUDGET,
                leave_grace: Duration::from_secs(args.leave_grace),
                adopt_grace: Duration::from_secs(5),
                interval: Duration::from_secs(3),
                cut_legacy: args.cut_legacy,
                run_dir: args.run_dir.run_dir,
            },
            admin_addr: args.admin_addr,
            uids,
            never_wait_for: args.never_wait_for,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn wrong_input_names_the_flag() {
        let error = Args::try_parse_from([
            "weft-node",
            "run",
            "--node-name",
            "n",
            "--controller",
            "nowhere",
            "--trust-anchors",
            "a",
            "--token-file",
            "t",
        ])
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("--controller") && error.contains("HOST:PORT"),
            "{error}"
        );
    }
}
