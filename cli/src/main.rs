//! `weft`, the command line of the mesh.
//!
//! One file per command; each writes its result to stdout and explains itself on stderr. The verbs,
//! flags and output shapes are those of Linkerd's CLI. Talks to the controller over its gRPC APIs.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints"
)]

mod diagnostics;
mod table;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Look at and work with a Weft mesh.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Commands for finding out what the mesh sees.
    #[command(alias = "dg", subcommand)]
    Diagnostics(diagnostics::Command),
    /// Print the version of this program.
    Version(version::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Diagnostics(command) => diagnostics::run(command).await,
        Command::Version(args) => {
            println!("{}", version::render(&args));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
