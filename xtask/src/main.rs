//! Commands of the repository: `cargo xtask --help`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

mod ebpf;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, shows, tests and checks Weft.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the kernel programs into target/bpf.
    BuildEbpf(ebpf::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::BuildEbpf(args) => ebpf::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
