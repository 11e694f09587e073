//! `demo`: sets up, builds, and runs the program `weft-demo` of `weft-tests`.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{ebpf, setup, shell};

/// Shows the mesh at work: two nodes, real programs, a live summary.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs a fixed script, prints one row per check, and ends.
    #[arg(long)]
    once: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = prepare()?;
    if args.once {
        command.arg("--once");
    }
    // Replaces this process, so that Ctrl-C reaches the demo and nothing else.
    Err(command.exec()).context("start weft-demo")
}

/// Builds everything that the demo needs and gives the command that runs it.
pub(crate) fn prepare() -> Result<Command> {
    ensure!(
        shell::is_root(),
        "the demo makes network namespaces, cgroups and eBPF programs: run it as root"
    );
    setup::ensure()?;
    ebpf::build(ebpf::Variant::Debug)?;
    build_programs()?;
    Ok(Command::new(shell::target().join("debug/weft-demo")))
}

/// Builds the daemons and the applications.
pub(crate) fn build_programs() -> Result<()> {
    shell::run(shell::cargo().args(["build", "--workspace", "--exclude", "xtask", "--bins"]))
}
