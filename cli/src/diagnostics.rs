//! `weft diagnostics`: what the controller would tell a node.

mod endpoints;

use std::path::PathBuf;

use anyhow::Context as _;
use weft_api::client::{Authorized, Controller};

/// The diagnostics commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the endpoints that discovery has for an authority.
    #[command(alias = "ep", after_help = endpoints::EXAMPLES)]
    Endpoints(endpoints::Args),
}

/// Where the controller is.
#[derive(Debug, clap::Args)]
struct ControllerArgs {
    /// The controller's gRPC address.
    #[arg(
        long,
        env = "WEFT_CONTROLLER",
        default_value = "127.0.0.1:8086",
        value_name = "HOST:PORT"
    )]
    controller: String,
    /// Name in the controller's certificate.
    #[arg(
        long,
        env = "WEFT_CONTROLLER_NAME",
        default_value = "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local"
    )]
    controller_name: String,
    /// PEM file of the trust anchors; without it the connection is plaintext.
    #[arg(long, env = "WEFT_TRUST_ANCHORS", value_name = "FILE")]
    trust_anchors: Option<PathBuf>,
}

impl ControllerArgs {
    fn connect(&self) -> anyhow::Result<Authorized> {
        let trust_anchors = self
            .trust_anchors
            .as_ref()
            .map(|path| std::fs::read(path).with_context(|| format!("read {}", path.display())))
            .transpose()?;
        let controller = Controller {
            addr: self.controller.clone(),
            server_name: self.controller_name.clone(),
            trust_anchors,
            token: None,
        };
        Ok(controller.connect()?)
    }
}

/// Runs a diagnostics command.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Endpoints(args) => endpoints::run(args).await,
    }
}
