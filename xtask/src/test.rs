//! `test`: every kind of test under one command, closed by one line with the numbers.
//!
//! A step that cannot run counts as one failure and does not keep the others from running.

use std::{process::Command, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use crate::{check, demo, ebpf, libtest::Tally, setup, shell};

/// Runs the tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which ones.
    #[arg(default_value = "all")]
    kind: Kind,
    /// For netns: only suites whose name contains this.
    #[arg(long, default_value = "")]
    suite: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Formatting, lints, layers; unit and documentation tests. Needs no root.
    Unit,
    /// The mesh in network namespaces. Needs root.
    Netns,
    /// Everything: unit, netns, the demo's checks, documentation.
    All,
}

/// Longest time of one step: a suite that hangs fails.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Suites of `weft-tests` that need root begin with this.
const NETNS: &str = "netns_";

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("setup", |_| setup::ensure());
    if args.kind != Kind::Netns {
        unit(&mut steps);
    }
    if args.kind != Kind::Unit {
        netns(&mut steps, &args.suite);
    }
    if args.kind == Kind::All {
        steps.run("demo --once", |tally| {
            let mut command = demo::prepare(ebpf::Variant::Debug)?;
            shell::run_lines(command.arg("--once"), LIMIT, |line| tally.read_row(line))
        });
        steps.run("documentation", |_| document());
    }
    steps.close()
}

fn unit(steps: &mut Steps) {
    steps.run("formatting", |_| {
        shell::run(shell::cargo().args(["fmt", "--all", "--check"]))
    });
    steps.run("check", |_| check::run());
    steps.run("kernel programs", |_| ebpf::build(ebpf::Variant::Debug));
    steps.run("lints", |_| {
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        shell::run(shell::cargo().args(clippy))
    });
    steps.run("unit tests", |tally| {
        let mut cargo = shell::cargo();
        cargo.args(["test", "--workspace", "--lib", "--bins", "--no-fail-fast"]);
        lines(&mut cargo, tally)
    });
    steps.run("documentation tests", |tally| {
        lines(shell::cargo().args(["test", "--workspace", "--doc"]), tally)
    });
    for (package, suite) in suites(false) {
        steps.run(&suite, |tally| {
            lines(
                shell::cargo().args(["test", "-p", &package, "--test", &suite]),
                tally,
            )
        });
    }
}

fn netns(steps: &mut Steps, filter: &str) {
    let is_ready = steps.run("programs for the netns suites", |_| {
        ensure!(
            shell::is_root(),
            "the netns suites make network namespaces, cgroups and eBPF programs: run them as root"
        );
        ebpf::build(ebpf::Variant::Debug)?;
        demo::build_programs(ebpf::Variant::Debug)
    });
    if !is_ready {
        return;
    }
    for (package, suite) in suites(true) {
        if suite.contains(filter) {
            steps.run(&suite, |tally| {
                let mut cargo = shell::cargo();
                cargo.args(["test", "-p", &package, "--test", &suite]);
                // The suites measure, load the machine and attach to shared hooks.
                lines(cargo.args(["--", "--test-threads=1"]), tally)
            });
        }
    }
}

/// Integration tests of all packages: those in need of root, or the others.
fn suites(with_root: bool) -> Vec<(String, String)> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(shell::root())
        .no_deps()
        .exec();
    let packages = metadata
        .map(|metadata| metadata.packages)
        .unwrap_or_default();
    let mut suites: Vec<(String, String)> = packages
        .iter()
        .flat_map(|package| package.targets.iter().map(move |target| (package, target)))
        .filter(|(_, target)| target.is_test() && target.name.starts_with(NETNS) == with_root)
        .map(|(package, target)| (package.name.to_string(), target.name.clone()))
        .collect();
    suites.sort();
    suites
}

fn lines(command: &mut Command, tally: &mut Tally) -> Result<()> {
    shell::run_lines(command, LIMIT, |line| tally.read(line))
}

fn document() -> Result<()> {
    shell::run(
        shell::cargo()
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--quiet",
            ])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// Runs steps one after the other and adds up what they count.
#[derive(Default)]
struct Steps {
    tally: Tally,
    failed: Vec<String>,
}

impl Steps {
    /// Whether the step succeeded.
    fn run(&mut self, name: &str, step: impl FnOnce(&mut Tally) -> Result<()>) -> bool {
        println!("\n== {name}");
        let mut tally = Tally::default();
        let result = step(&mut tally);
        if let Err(error) = &result {
            println!("== {name} failed: {error:#}");
            self.failed.push(name.to_owned());
            // The step itself, when no test of it is to blame.
            tally.failed = tally.failed.max(1);
        }
        self.tally.add(tally);
        result.is_ok()
    }

    fn close(self) -> Result<()> {
        println!();
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{}", self.tally);
        if self.tally.failed > 0 {
            bail!("{} steps failed", self.failed.len());
        }
        Ok(())
    }
}
