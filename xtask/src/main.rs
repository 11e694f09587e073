//! Commands of the repository: `cargo xtask --help`.
//!
//! One module per command. They print what they do and run cargo; whatever needs to know the mesh
//! is in `weft-tests`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

mod bench;
mod check;
mod demo;
mod ebpf;
mod libtest;
mod setup;
mod shell;
mod test;

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
    /// Measures Weft beside no proxy and an Envoy pair.
    Bench(bench::Args),
    /// Builds the kernel programs into target/bpf.
    BuildEbpf(ebpf::Args),
    /// Checks layers, sizes, dependencies and document links.
    Check,
    /// Shows the mesh at work: two nodes, real programs, a live summary.
    Demo(demo::Args),
    /// Installs what demo, tests and benchmarks need.
    Setup(setup::Args),
    /// Runs the tests.
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::BuildEbpf(args) => ebpf::run(&args),
        Command::Check => check::run(),
        Command::Demo(args) => demo::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => test::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
