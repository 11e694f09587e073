//! Build, demo, test and bench commands of the repository: `cargo xtask --help`.
#![expect(clippy::print_stdout, reason = "a command line program")]

mod bench;

use clap::Parser as _;

/// Build, demo, test and bench commands of the repository.
#[derive(clap::Parser)]
#[command(name = "cargo xtask")]
enum Command {
    /// Measures Weft beside no proxy and an Envoy pair.
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Bench(args) => bench::run(&args),
    }
}
