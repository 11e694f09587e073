//! `build-ebpf`: builds the kernel programs and watches their size.
//!
//! The programs are for another target, whose standard library has to be built from source. Either
//! a nightly toolchain with rust-src does that, or the distribution's own compiler and its source
//! package. The result goes to `target/bpf/weft-ebpf`, where `node/build.rs` finds it; it is
//! written only when it differs, so that weft-node is not built again for nothing.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _, SymbolKind};

/// Builds the kernel programs into target/bpf.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leaves out what only disassemblers read; the programs are the same.
    #[arg(long, conflicts_with = "log")]
    pub(crate) release: bool,
    /// Has the programs write a line about each decision; weft-node built with the feature
    /// `kernel-log` prints them.
    #[arg(long)]
    pub(crate) log: bool,
}

/// What to build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// With all that disassemblers read.
    Debug,
    /// Programs that write a line about each decision.
    Log,
    /// Without what only disassemblers read.
    Release,
}

/// Most instructions that each program may have. A program that grows pays on every connection or
/// packet, and older kernels' verifiers give up earlier: raise a number on purpose only.
const BUDGET: [(&str, u64); 5] = [
    ("capture_connect4", 300),
    ("capture_connect6", 350),
    ("guard_egress", 1200),
    ("steer_inbound", 800),
    ("steer_outbound", 500),
];

const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
const LLVM_STRIP: &str = "/usr/lib/llvm-22/bin/llvm-strip";
const TARGET: &str = "bpfel-unknown-none";

const ADVICE: &str = "\
no toolchain for eBPF was found. One of these is needed:
  a nightly with its source:   rustup toolchain install nightly --component rust-src
  Debian's compiler:           apt-get install rustc-web rust-web-src
and a linker that fits its LLVM:
  apt-get install llvm-22-dev libpolly-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \\
    --no-default-features --features llvm-22
or, as root on Debian: cargo xtask setup";

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    build(match (args.release, args.log) {
        (true, _) => Variant::Release,
        (false, true) => Variant::Log,
        (false, false) => Variant::Debug,
    })
}

/// Builds the object file.
pub(crate) fn build(variant: Variant) -> Result<()> {
    let target = target();
    let built = compile(&target.join("bpf-build"), variant)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    check_budget(&read(&built)?, variant)?;
    let bytes = match variant {
        Variant::Release => read(&strip(&built)?)?,
        Variant::Debug | Variant::Log => read(&built)?,
    };
    let placed = target.join("bpf/weft-ebpf");
    if fs::read(&placed).is_ok_and(|old| old == bytes) {
        println!("{} is up to date", placed.display());
        return Ok(());
    }
    fs::create_dir_all(target.join("bpf")).context("make target/bpf")?;
    fs::write(&placed, bytes).with_context(|| format!("write {}", placed.display()))?;
    println!("{} is made", placed.display());
    Ok(())
}

/// Compiles the programs; gives the path of the object.
fn compile(target: &Path, variant: Variant) -> Result<PathBuf> {
    if find_program("bpf-linker").is_none() {
        bail!("bpf-linker is missing\n{ADVICE}");
    }
    let mut command = cargo()?;
    command
        .current_dir(root())
        .args([
            "build",
            "--quiet",
            "--package",
            "weft-ebpf",
            "--bin",
            "weft-ebpf",
            "--release",
        ])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(target)
        .env("RUSTFLAGS", rustflags())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    if variant == Variant::Log {
        command.args(["--features", "log"]);
    }
    let status = command.status().context("run cargo")?;
    if !status.success() {
        bail!("building the kernel programs failed: {status}");
    }
    Ok(target.join(TARGET).join("release/weft-ebpf"))
}

/// Makes a copy without DWARF; BTF, which loaders need and verifier logs quote, stays.
fn strip(object: &Path) -> Result<PathBuf> {
    let tool = find_program("llvm-strip")
        .or_else(|| Some(PathBuf::from(LLVM_STRIP)).filter(|path| path.is_file()));
    let tool = tool.with_context(|| format!("llvm-strip is missing\n{ADVICE}"))?;
    let stripped = object.with_extension("stripped");
    let status = Command::new(tool)
        .arg("-g")
        .arg("-o")
        .arg(&stripped)
        .arg(object)
        .status();
    match status.context("run llvm-strip")?.success() {
        true => Ok(stripped),
        false => bail!("llvm-strip failed on {}", object.display()),
    }
}

/// Type information describes the maps, so debug information is needed in any case.
fn rustflags() -> String {
    format!(
        "-C linker=bpf-linker -C link-arg=--btf -C debuginfo=2 --cfg bpf_target_arch=\"{}\"",
        env::consts::ARCH
    )
}

/// The cargo that can build the standard library: nightly's, or this one with the distribution's
/// compiler.
fn cargo() -> Result<Command> {
    if has_source("rustup", &["run", "nightly", "rustc"]) {
        let mut command = Command::new("rustup");
        command
            .args(["run", "nightly", "cargo"])
            .env_remove("RUSTC")
            .env_remove("CARGO");
        return Ok(command);
    }
    if has_source(DISTRIBUTION_RUSTC, &[]) {
        let mut command = Command::new(own_cargo());
        // Lets a stable compiler build its own standard library.
        command
            .env("RUSTC", DISTRIBUTION_RUSTC)
            .env("RUSTC_BOOTSTRAP", "1");
        return Ok(command);
    }
    bail!(ADVICE)
}

/// Whether the compiler runs and has the source of its standard library.
fn has_source(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program)
        .args(args)
        .args(["--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout);
        let source = "lib/rustlib/src/rust/library/core/src/lib.rs";
        output.status.success() && Path::new(sysroot.trim()).join(source).exists()
    })
}

/// Prints how many instructions each program has, and fails when one has too many. What writes a
/// log may be as large as it likes.
fn check_budget(object: &[u8], variant: Variant) -> Result<()> {
    let sizes = sizes(object)?;
    let mut over = Vec::new();
    println!("{:<20} {:>12} {:>8}", "program", "instructions", "budget");
    for (program, budget) in BUDGET {
        let found = sizes.iter().find(|(name, _)| name == program);
        let (_, size) = found.with_context(|| format!("program {program} is not in the object"))?;
        println!("{program:<20} {size:>12} {budget:>8}");
        if *size > budget {
            over.push(program);
        }
    }
    for (name, size) in &sizes {
        if BUDGET.iter().all(|(program, _)| program != name) {
            println!("{name:<20} {size:>12}        -");
        }
    }
    if !over.is_empty() && variant != Variant::Log {
        bail!(
            "over budget: {}; see BUDGET in xtask/src/ebpf.rs",
            over.join(", ")
        );
    }
    Ok(())
}

/// Functions of the object, with their number of instructions of 8 bytes.
fn sizes(object: &[u8]) -> Result<Vec<(String, u64)>> {
    let file = object::File::parse(object).context("read the eBPF object")?;
    let mut sizes: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
        .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.size() / 8)))
        .collect();
    sizes.sort();
    Ok(sizes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is where the environment is read"
)]
fn own_cargo() -> OsString {
    env::var("CARGO").map_or_else(|_| "cargo".into(), Into::into)
}

/// Root of the workspace.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo puts what it builds, and where `node/build.rs` looks.
fn target() -> PathBuf {
    root().join("target")
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = env::home_dir().map(|home| home.join(".cargo/bin"));
    env::split_paths(&path)
        .chain(cargo_bin)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
