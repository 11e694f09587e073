//! `build-ebpf`: placeholder until the kernel programs are there.

use anyhow::Result;

/// Builds the kernel programs into target/bpf.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Builds without debugging aids.
    #[arg(long)]
    pub(crate) release: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    build(args.release)
}

/// Builds the object file.
pub(crate) fn build(release: bool) -> Result<()> {
    println!("build-ebpf (release: {release}): nothing to build yet");
    Ok(())
}
