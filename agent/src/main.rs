//! The weft-agent binary: reads settings, runs the agent, says how it ended.
//!
//! Exit codes: 0 after a drain, 1 when something failed, 2 for a command line that is wrong.

use std::process::ExitCode;

use clap::Parser as _;
use tracing::error;
use weft_agent::{
    app,
    config::{Args, Config},
};
use weft_runtime::{logging, tls};

fn main() -> ExitCode {
    let args = Args::parse();
    let (log, print_config) = (args.log.clone(), args.print_config);
    if let Err(error) = logging::init(&log) {
        return complain(&error);
    }
    tls::install_provider();
    let config = match Config::new(args) {
        Ok(config) => config,
        Err(error) => return complain(&error),
    };
    if print_config {
        print(&config);
        return ExitCode::SUCCESS;
    }
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "failed");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "it was asked for")]
fn print(config: &Config) {
    println!("{:#}", config.describe());
}

#[expect(clippy::print_stderr, reason = "the log may not be there yet")]
fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("weft-agent: {error:#}");
    ExitCode::from(2)
}
