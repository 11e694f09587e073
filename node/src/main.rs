//! The node daemon's command line; see `weft_node::config` for its flags.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use weft_node::{
    app,
    cni::plugin::ask_status,
    config::{Args, Command, Config, Output},
    kernel::probe,
    show,
};
use weft_runtime::{logging, tls};

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let written = writeln!(io::stderr(), "weft-node: {error:#}");
            drop(written);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let mut config = Config::try_from(*args)?;
            // It warns at every look at an interface whose kernel is newer than the crate.
            let quiet = format!("netlink_packet_route=error,{}", config.logging.log);
            config.logging.log = quiet;
            logging::init(&config.logging)?;
            tls::install_provider();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(app::run(config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Preflight(args) => {
            let checks = probe::preflight(&args.config()?);
            write!(io::stdout(), "{}", show::preflight(&checks))?;
            let is_missing = |check: &probe::Check| check.outcome == probe::Outcome::Missing;
            Ok(if checks.iter().any(is_missing) {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            })
        }
        Command::Status(args) => {
            let run_dir = &args.run_dir.run_dir;
            let status = ask_status(run_dir).with_context(|| {
                format!(
                    "ask the daemon at {} (is weft-node running, and are you root? see --run-dir)",
                    run_dir.display()
                )
            })?;
            let text = match args.output {
                Output::Table => show::status(&status),
                Output::Json => serde_json::to_string_pretty(&status)? + "\n",
            };
            write!(io::stdout(), "{text}")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Cleanup(args) => {
            let (run_dir, kernel) = args.parts()?;
            write!(io::stdout(), "{}", app::cleanup(&run_dir, &kernel)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
