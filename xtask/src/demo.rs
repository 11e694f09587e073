//! `demo`: sets up, builds, and runs the program `weft-demo` of `weft-tests`.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ebpf::{self, Variant},
    setup, shell,
};

/// Shows the mesh at work: two nodes, real programs, a live summary.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs a fixed script, prints one row per check, and ends.
    #[arg(long)]
    once: bool,
    /// Has kernel programs say what they decide, in the logs of weft-node.
    #[arg(long)]
    kernel_log: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = prepare(match args.kernel_log {
        true => Variant::Log,
        false => Variant::Debug,
    })?;
    if args.once {
        command.arg("--once");
    }
    // Replaces this process, so that Ctrl-C reaches the demo and nothing else.
    Err(command.exec()).context("start weft-demo")
}

/// Builds everything that the demo needs and gives the command that runs it.
pub(crate) fn prepare(variant: Variant) -> Result<Command> {
    ensure!(
        shell::is_root(),
        "the demo makes network namespaces, cgroups and eBPF programs: run it as root"
    );
    setup::ensure()?;
    ebpf::build(variant)?;
    build_programs(variant)?;
    Ok(Command::new(shell::target().join("debug/weft-demo")))
}

/// Builds the daemons and the applications.
pub(crate) fn build_programs(variant: Variant) -> Result<()> {
    let mut build = shell::cargo();
    build.args(["build", "--workspace", "--exclude", "xtask", "--bins"]);
    if variant == Variant::Log {
        build.args(["--features", "weft-node/kernel-log"]);
    }
    shell::run(&mut build)
}
