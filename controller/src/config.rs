//! Settings: what was typed, and what was checked of it.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use weft_api::model::Settings;
use weft_runtime::logging;

use crate::{
    ca::{CaFiles, Validity},
    index::{Cluster, DefaultPolicy, parse_duration},
};

/// Weft's control plane.
#[derive(Debug, Parser)]
#[command(name = "weft-controller", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves nodes and proxies until stopped.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Prints the credential of a node, and makes it first if there is none.
    #[command(after_help = TOKEN_EXAMPLES)]
    JoinToken {
        /// Folder where the controller keeps keys and tokens.
        #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
        state: PathBuf,
        /// Name of the node, as pods name it in spec.nodeName.
        #[arg(long, value_name = "NAME")]
        node: String,
    },
    /// Reads manifests once and prints what is wrong; exits with 1 if something has no effect.
    #[command(after_help = CHECK_EXAMPLES)]
    CheckManifests {
        /// Where the manifests are: dir:PATH.
        #[arg(long, env = "WEFT_SOURCE", value_name = "SOURCE")]
        source: Source,
    },
}

/// `run` as typed.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Process log.
    #[command(flatten)]
    pub log: logging::Args,
    /// Where objects come from: dir:PATH, a folder of Kubernetes manifests that is followed live.
    #[arg(long, env = "WEFT_SOURCE", value_name = "SOURCE")]
    source: Source,
    /// Folder for keys, certificates and join tokens. Made if it does not exist.
    #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
    state: PathBuf,
    /// Serves all APIs here.
    #[arg(
        long,
        env = "WEFT_LISTEN",
        default_value = "127.0.0.1:8086",
        value_name = "ADDR:PORT"
    )]
    listen: SocketAddr,
    /// Serves all APIs here too; Linkerd's port for identity is 8080.
    #[arg(long, env = "WEFT_IDENTITY_ADDR", value_name = "ADDR:PORT")]
    identity_addr: Option<SocketAddr>,
    /// Serves all APIs here too; Linkerd's port for policy is 8090.
    #[arg(long, env = "WEFT_POLICY_ADDR", value_name = "ADDR:PORT")]
    policy_addr: Option<SocketAddr>,
    /// Serves /metrics, /ready, /live and /debug/problems here, plaintext.
    #[arg(
        long,
        env = "WEFT_ADMIN_ADDR",
        default_value = "127.0.0.1:9996",
        value_name = "ADDR:PORT"
    )]
    admin_addr: SocketAddr,
    /// Serves without TLS. Allowed only if every address is a loopback address.
    #[arg(long, env = "WEFT_PLAINTEXT")]
    plaintext: bool,
    /// Trust domain: the last part of every identity.
    #[arg(
        long,
        env = "WEFT_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    trust_domain: String,
    /// Suffix of service names.
    #[arg(
        long,
        env = "WEFT_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    cluster_domain: String,
    /// Namespace of the control plane: a part of every identity.
    #[arg(
        long,
        env = "WEFT_CONTROLLER_NAMESPACE",
        default_value = "linkerd",
        value_name = "NAMESPACE"
    )]
    controller_namespace: String,
    /// How long workload certificates are valid.
    #[arg(
        long,
        env = "WEFT_ISSUANCE_LIFETIME",
        default_value = "24h",
        value_parser = duration,
        value_name = "DURATION"
    )]
    issuance_lifetime: Duration,
    /// How far back certificates begin, for clocks that are behind.
    #[arg(
        long,
        env = "WEFT_CLOCK_SKEW_ALLOWANCE",
        default_value = "20s",
        value_parser = duration,
        value_name = "DURATION"
    )]
    clock_skew_allowance: Duration,
    /// How proxies reach endpoints: on their own port, or through the proxy's port with a header.
    #[arg(
        long,
        env = "WEFT_OUTBOUND_TRANSPORT_MODE",
        default_value = "transparent",
        value_enum
    )]
    outbound_transport_mode: TransportMode,
    /// Whether proxies speak HTTP/2 between them for HTTP/1 requests.
    #[arg(
        long,
        env = "WEFT_H2_UPGRADE",
        default_value_t = false,
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    h2_upgrade: bool,
    /// Networks inside the cluster, comma separated.
    #[arg(
        long,
        env = "WEFT_CLUSTER_NETWORKS",
        value_delimiter = ',',
        default_value = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8",
        value_name = "CIDRS"
    )]
    cluster_networks: Vec<IpNet>,
    /// Networks from which probes come, comma separated.
    #[arg(
        long,
        env = "WEFT_PROBE_NETWORKS",
        value_delimiter = ',',
        default_value = "0.0.0.0/0,::/0",
        value_name = "CIDRS"
    )]
    probe_networks: Vec<IpNet>,
    /// Inbound policy of pods whose annotations name none.
    #[arg(
        long,
        env = "WEFT_DEFAULT_INBOUND_POLICY",
        default_value = "all-unauthenticated",
        value_name = "POLICY"
    )]
    default_inbound_policy: DefaultPolicy,
    /// Trust anchors, PEM, in place of those in the state folder.
    #[arg(long, env = "WEFT_TRUST_ANCHORS", requires_all = ["issuer_cert", "issuer_key"], value_name = "FILE")]
    trust_anchors: Option<PathBuf>,
    /// Issuer certificate and those between it and an anchor, PEM.
    #[arg(long, env = "WEFT_ISSUER_CERT", requires_all = ["trust_anchors", "issuer_key"], value_name = "FILE")]
    issuer_cert: Option<PathBuf>,
    /// Key of the issuer certificate, PEM.
    #[arg(long, env = "WEFT_ISSUER_KEY", requires_all = ["trust_anchors", "issuer_cert"], value_name = "FILE")]
    issuer_key: Option<PathBuf>,
}

/// How proxies reach endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportMode {
    /// On the endpoint's own port.
    Transparent,
    /// Through port 4143 with a transport header.
    TransportHeader,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of manifests.
    Dir(PathBuf),
}

/// Checked settings of `run`.
#[derive(Debug)]
pub struct Config {
    /// Where objects come from.
    pub source: Source,
    /// Folder for keys and tokens.
    pub state: PathBuf,
    /// Addresses of the gRPC listeners.
    pub listen: Vec<SocketAddr>,
    /// Address of the admin server.
    pub admin: SocketAddr,
    /// Whether gRPC is served without TLS.
    pub plaintext: bool,
    /// What the index needs to know.
    pub cluster: Cluster,
    /// How long certificates are valid.
    pub validity: Validity,
    /// Certificates that somebody else keeps.
    pub ca_files: Option<CaFiles>,
}

impl Config {
    /// DNS names of the controller's own certificate.
    pub fn server_names(&self) -> Vec<String> {
        let Cluster {
            controller_namespace: namespace,
            trust_domain: domain,
            ..
        } = &self.cluster;
        ["identity", "destination", "policy"]
            .map(|name| {
                format!("linkerd-{name}.{namespace}.serviceaccount.identity.{namespace}.{domain}")
            })
            .into()
    }
}

impl TryFrom<RunArgs> for Config {
    type Error = anyhow::Error;

    fn try_from(args: RunArgs) -> Result<Self, Self::Error> {
        let extra = [args.identity_addr, args.policy_addr];
        let listen: Vec<_> = [args.listen]
            .into_iter()
            .chain(extra.into_iter().flatten())
            .collect();
        let outside = listen.iter().find(|addr| !addr.ip().is_loopback());
        if let Some(addr) = outside.filter(|_| args.plaintext) {
            bail!("--plaintext: {addr} is not a loopback address; serve with TLS there");
        }
        for (name, domain) in [
            ("--trust-domain", &args.trust_domain),
            ("--cluster-domain", &args.cluster_domain),
            ("--controller-namespace", &args.controller_namespace),
        ] {
            ensure!(
                crate::source::is_dns_subdomain(domain),
                "{name}: {domain:?} is not a DNS name (lower case letters, digits, hyphens, dots)"
            );
        }
        ensure!(
            args.issuance_lifetime >= MIN_LIFETIME,
            "--issuance-lifetime: must be at least {MIN_LIFETIME:?}: proxies renew at 70 % of it"
        );
        let ca_files = match (args.trust_anchors, args.issuer_cert, args.issuer_key) {
            (Some(anchors), Some(issuer), Some(key)) => Some(CaFiles {
                anchors,
                issuer,
                key,
            }),
            _ => None,
        };
        let settings = Settings {
            default_inbound_policy: args.default_inbound_policy.as_str().into(),
            ..Settings::default()
        };
        Ok(Self {
            source: args.source,
            state: args.state,
            listen,
            admin: args.admin_addr,
            plaintext: args.plaintext,
            cluster: Cluster {
                controller_namespace: args.controller_namespace.into(),
                trust_domain: args.trust_domain.into(),
                cluster_domain: args.cluster_domain.into(),
                networks: args.cluster_networks,
                probe_networks: args.probe_networks,
                default_inbound_policy: args.default_inbound_policy,
                transport_header: args.outbound_transport_mode == TransportMode::TransportHeader,
                h2_upgrade: args.h2_upgrade,
                settings,
            },
            validity: Validity {
                lifetime: args.issuance_lifetime,
                skew: args.clock_skew_allowance,
            },
            ca_files,
        })
    }
}

impl FromStr for Source {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text
            .strip_prefix("dir:")
            .filter(|path| !path.is_empty())
            .with_context(|| format!("{text:?} is no source; use dir:PATH"))?;
        Ok(Self::Dir(path.into()))
    }
}

impl Default for Cluster {
    /// Linkerd's defaults.
    fn default() -> Self {
        let net = |ip: [u8; 4], length| IpNet::new(IpAddr::from(ip), length).unwrap_or_default();
        let unique_local = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0]);
        let all = [
            IpNet::V4(ipnet::Ipv4Net::default()),
            IpNet::V6(ipnet::Ipv6Net::default()),
        ];
        Self {
            controller_namespace: "linkerd".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            networks: vec![
                net([10, 0, 0, 0], 8),
                net([100, 64, 0, 0], 10),
                net([172, 16, 0, 0], 12),
                net([192, 168, 0, 0], 16),
                IpNet::new(unique_local, 8).unwrap_or_default(),
            ],
            probe_networks: all.into(),
            default_inbound_policy: DefaultPolicy::AllUnauthenticated,
            transport_header: false,
            h2_upgrade: false,
            settings: Settings::default(),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is not a duration such as 20s or 24h"))
}

const MIN_LIFETIME: Duration = Duration::from_secs(10);

const RUN_EXAMPLES: &str = "Examples:
  weft-controller run --source dir:./manifests --state /var/lib/weft
  weft-controller run --source dir:./manifests --state /var/lib/weft --listen 10.0.0.1:8086
  weft-controller run --source dir:./manifests --state ./state --plaintext --log debug";

const TOKEN_EXAMPLES: &str = "Examples:
  weft-controller join-token --state /var/lib/weft --node n1 > n1.token";

const CHECK_EXAMPLES: &str = "Examples:
  weft-controller check-manifests --source dir:./manifests";
