//! Settings: what was typed (`Args`), and what is used after checking (`Config`).
//!
//! Flag before environment before default. Nothing is read from the environment later.

use std::{
    fs,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser;
use ipnet::IpNet;
use serde_json::{Value, json};
use weft_runtime::logging;

/// Linkerd's default for networks that may belong to the cluster.
const CLUSTER_NETWORKS: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";
/// Whom to expect as the controller, with the default names of a cluster.
const CONTROLLER_NAME: &str =
    "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local";

const EXAMPLES: &str = "Examples:
  weft-agent --node-name n1 --controller 10.0.0.1:8086 \\
      --trust-anchors /etc/weft/trust-anchors.pem --token-file /etc/weft/token

  Show the settings that would be used, and exit:
  weft-agent --node-name n1 --controller 10.0.0.1:8086 --print-config \\
      --trust-anchors /etc/weft/trust-anchors.pem --token-file /etc/weft/token";

/// Weft's node proxy: mutual TLS, HTTP, balancing and metrics for every meshed pod of this node.
#[derive(Debug, Parser)]
#[command(name = "weft-agent", version, after_help = EXAMPLES)]
#[group(id = "agent")]
pub struct Args {
    /// Name of this node, as the cluster knows it.
    #[arg(long, env = "WEFT_NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// Where the controller is.
    #[arg(long, env = "WEFT_CONTROLLER", value_name = "HOST:PORT")]
    pub controller: String,
    /// Name that the controller's certificate has to have.
    #[arg(long, env = "WEFT_CONTROLLER_NAME", value_name = "NAME", default_value = CONTROLLER_NAME)]
    pub controller_name: String,
    /// PEM file with the anchors by which the controller is trusted at first.
    #[arg(long, env = "WEFT_TRUST_ANCHORS", value_name = "FILE")]
    pub trust_anchors: PathBuf,
    /// File with this node's credential towards the controller.
    #[arg(long, env = "WEFT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,
    /// Directory of weft-node's socket.
    #[arg(
        long,
        env = "WEFT_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/weft"
    )]
    pub run_dir: PathBuf,
    /// Where this agent's own metrics and health are served.
    #[arg(
        long,
        env = "WEFT_ADMIN_ADDR",
        value_name = "ADDR",
        default_value = "127.0.0.1:9990"
    )]
    pub admin_addr: SocketAddr,
    /// Threads that serve connections. As many as there are cores if not given.
    #[arg(long, env = "WEFT_WORKERS", value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// How long open connections may go on when the agent stops.
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Networks whose addresses may belong to the cluster.
    #[arg(long, env = "WEFT_CLUSTER_NETWORKS", value_name = "CIDRS", value_delimiter = ',', default_value = CLUSTER_NETWORKS)]
    pub cluster_networks: Vec<IpNet>,
    /// Print the settings as JSON and exit.
    #[arg(long)]
    pub print_config: bool,
    /// The process log.
    #[command(flatten)]
    pub log: logging::Args,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node: Arc<str>,
    /// Where the controller is, `host:port`.
    pub controller: String,
    /// Name that the controller's certificate has to have.
    pub controller_name: String,
    /// PEM of the anchors by which the controller is trusted at first.
    pub trust_anchors: String,
    /// File with this node's credential.
    pub token_file: PathBuf,
    /// weft-node's socket.
    pub node_socket: PathBuf,
    /// Where metrics and health are served.
    pub admin_addr: SocketAddr,
    /// Threads that serve connections.
    pub workers: NonZeroUsize,
    /// How long open connections may go on when the agent stops.
    pub drain_timeout: Duration,
    /// Networks whose addresses may belong to the cluster.
    pub cluster_networks: Arc<[IpNet]>,
}

impl Config {
    /// Checks what was typed and reads the files it names, but for the token, which may change.
    ///
    /// # Errors
    /// When something cannot be used; says which flag.
    pub fn new(args: Args) -> anyhow::Result<Self> {
        if args.node_name.is_empty() {
            bail!("--node-name is empty");
        }
        let anchors = read(&args.trust_anchors, "--trust-anchors")?;
        let workers = match args.workers {
            Some(workers) => workers,
            None => thread::available_parallelism().context("count cores (see --workers)")?,
        };
        Ok(Self {
            node: args.node_name.into(),
            controller: args.controller,
            controller_name: args.controller_name,
            trust_anchors: anchors,
            token_file: args.token_file,
            node_socket: args.run_dir.join("node.sock"),
            admin_addr: args.admin_addr,
            workers,
            drain_timeout: args.drain_timeout,
            cluster_networks: args.cluster_networks.into(),
        })
    }

    /// The settings, for people. Holds no secret.
    pub fn describe(&self) -> Value {
        let networks = self.cluster_networks.iter().map(ToString::to_string);
        json!({
            "node-name": &*self.node,
            "controller": self.controller,
            "controller-name": self.controller_name,
            "trust-anchors-bytes": self.trust_anchors.len(),
            "token-file": self.token_file,
            "node-socket": self.node_socket,
            "admin-addr": self.admin_addr.to_string(),
            "workers": self.workers.get(),
            "drain-timeout": format!("{:?}", self.drain_timeout),
            "cluster-networks": networks.collect::<Vec<_>>(),
        })
    }
}

fn read(path: &Path, flag: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {} (see {flag})", path.display()))
}

/// A whole number with a unit, as in `250ms`, `30s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("give a whole number and a unit, as in 250ms, 30s, 5m or 1h".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{number:?} is not a number that can be used"))
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
    fn durations_have_a_unit() {
        for (text, expected) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("30s", Some(Duration::from_secs(30))),
            ("1h", Some(Duration::from_secs(3600))),
            ("30", None),
            ("s", None),
            ("1.5s", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_was_typed_is_checked_and_completed() {
        let dir = tempfile::tempdir().unwrap();
        let anchors = dir.path().join("anchors.pem");
        let typed = |anchors: &Path| {
            Args::parse_from([
                "weft-agent",
                "--node-name=n1",
                "--controller=10.0.0.1:8086",
                "--token-file=/token",
                "--run-dir=/r",
                &format!("--trust-anchors={}", anchors.display()),
            ])
        };
        let error = Config::new(typed(&anchors)).unwrap_err();
        assert!(error.to_string().contains("--trust-anchors"), "{error}");
        fs::write(&anchors, "pem").unwrap();
        let config = Config::new(typed(&anchors)).unwrap();
        assert_eq!(config.node_socket, Path::new("/r/node.sock"));
        assert_eq!(config.cluster_networks.len(), 5);
        assert_eq!(config.controller_name, CONTROLLER_NAME);
        assert!(!config.describe().to_string().contains("pem\""));
    }
}
