//! `setup`: finds what the machine lacks and installs it where it may, or says what to install.
//!
//! Installs only as root on Debian and Ubuntu. Servers of the distribution (nginx, redis,
//! PostgreSQL) are needed as programs only: they are kept from starting as services.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Installs what demo, tests and benchmarks need.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only says what is missing; fails if something is.
    #[arg(long)]
    check: bool,
}

/// Something that must be on the machine.
struct Need {
    what: &'static str,
    packages: &'static [&'static str],
    is_there: fn() -> bool,
}

const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const POLICY: &str = "/usr/sbin/policy-rc.d";

const NEEDS: &[Need] = &[
    Need {
        what: "a compiler for eBPF (rustc with its source)",
        packages: &["rustc-web", "rust-web-src"],
        is_there: || has_distribution_compiler() || has_nightly(),
    },
    Need {
        what: "LLVM 22, for bpf-linker",
        packages: &["llvm-22-dev", "libpolly-22-dev", "clang-22", "lld-22"],
        is_there: || Path::new(LLVM).join("bin/llvm-config").exists() || has_linker(),
    },
    program("nginx", &["nginx-light"], || has("nginx")),
    program("redis-server", &["redis-server"], || has("redis-server")),
    program("redis-cli", &["redis-tools"], || has("redis-cli")),
    program("PostgreSQL", &["postgresql"], has_postgres),
    program("psql", &["postgresql-client"], || has("psql")),
    program("wrk", &["wrk"], || has("wrk")),
    program("h2load", &["nghttp2-client"], || has("h2load")),
    program("iperf3", &["iperf3"], || has("iperf3")),
    program("tcpdump", &["tcpdump"], || has("tcpdump")),
    program("nft", &["nftables"], || has("nft")),
    program("curl", &["curl"], || has("curl")),
    program("ip", &["iproute2"], || has("ip")),
    program("ps", &["procps"], || has("ps")),
    program("nsenter and setpriv", &["util-linux"], || {
        has("nsenter") && has("setpriv")
    }),
    program("valgrind", &["valgrind"], || has("valgrind")),
    program(
        "a C compiler, for build scripts",
        &["gcc", "libc6-dev"],
        || has("cc"),
    ),
];

const fn program(
    what: &'static str,
    packages: &'static [&'static str],
    is_there: fn() -> bool,
) -> Need {
    Need {
        what,
        packages,
        is_there,
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.check {
        return ensure();
    }
    let missing = missing();
    if missing.is_empty() && has_linker() {
        println!("nothing is missing");
        return Ok(());
    }
    bail!("{}", advice(&missing));
}

/// Installs what is missing, if this is allowed; silent if nothing is.
pub(crate) fn ensure() -> Result<()> {
    let missing = missing();
    if !missing.is_empty() {
        let may_install = shell::is_root() && has("apt-get") && is_debian();
        if !may_install {
            bail!("{}", advice(&missing));
        }
        install(&missing)?;
    }
    if !has_linker() {
        install_linker()?;
    }
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !has(program) {
            bail!("{program} is missing: rustup component add {component}");
        }
    }
    Ok(())
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !(need.is_there)()).collect()
}

fn advice(missing: &[&Need]) -> String {
    let mut text = String::from("this machine lacks:\n");
    for need in missing {
        text.push_str(&format!("  {} ({})\n", need.what, need.packages.join(" ")));
    }
    if !has_linker() {
        text.push_str("  bpf-linker\n");
    }
    if !missing.is_empty() {
        let packages = packages(missing).join(" ");
        text.push_str(&format!(
            "on Debian and Ubuntu:\n  apt-get install --no-install-recommends {packages}\n"
        ));
    }
    text.push_str(&format!(
        "bpf-linker:\n  LLVM_PREFIX={LLVM} cargo install bpf-linker --version {BPF_LINKER} \
         --no-default-features --features llvm-22\n\
         where rustc-web is not packaged, a nightly with rust-src does the same:\n  \
         rustup toolchain install nightly --component rust-src\n\
         or, as root on Debian: cargo xtask setup"
    ));
    text
}

fn packages(missing: &[&Need]) -> Vec<&'static str> {
    let all: BTreeSet<_> = missing
        .iter()
        .flat_map(|need| need.packages)
        .copied()
        .collect();
    all.into_iter().collect()
}

fn install(missing: &[&Need]) -> Result<()> {
    let packages = packages(missing);
    println!("setup: installing {}", packages.join(" "));
    let quiet = NoServices::start()?;
    shell::run(Command::new("apt-get").args(["-q", "update"]))?;
    shell::run(
        Command::new("apt-get")
            .args(["-q", "install", "-y", "--no-install-recommends"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    quiet.stop()?;
    for (package, service) in [
        ("nginx-light", "nginx"),
        ("redis-server", "redis-server"),
        ("postgresql", "postgresql"),
    ] {
        // Not started now, and not at the next boot either. Fails where systemd does not run.
        if packages.contains(&package) && Path::new("/run/systemd/system").exists() {
            shell::ask("systemctl", &["disable", "--now", service]);
        }
    }
    Ok(())
}

fn install_linker() -> Result<()> {
    println!("setup: building bpf-linker {BPF_LINKER}, about a minute");
    shell::run(
        shell::cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM),
    )
    .context("build bpf-linker")
}

/// While it lives, packages that are installed start no service.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    fn start() -> Result<Self> {
        let is_ours = !Path::new(POLICY).exists();
        if is_ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").context("write policy-rc.d")?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { is_ours })
    }

    fn stop(mut self) -> Result<()> {
        if std::mem::take(&mut self.is_ours) {
            fs::remove_file(POLICY).context("remove policy-rc.d")?;
        }
        Ok(())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours {
            fs::remove_file(POLICY).ok();
        }
    }
}

fn has(program: &str) -> bool {
    shell::find_program(program).is_some()
}

fn has_linker() -> bool {
    shell::find_program("bpf-linker")
        .is_some_and(|path| shell::ask(&path.to_string_lossy(), &["--version"]).is_some())
}

fn has_distribution_compiler() -> bool {
    has_source(shell::ask("/usr/bin/rustc", &["--print", "sysroot"]))
}

fn has_nightly() -> bool {
    has_source(shell::ask("rustc", &["+nightly", "--print", "sysroot"]))
}

fn has_source(sysroot: Option<String>) -> bool {
    sysroot.is_some_and(|root| {
        let source = "lib/rustlib/src/rust/library/core/src/lib.rs";
        PathBuf::from(root.trim()).join(source).exists()
    })
}

fn has_postgres() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    versions
        .flatten()
        .any(|version| version.path().join("bin/postgres").exists())
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, value)| matches!(key, "ID" | "ID_LIKE") && value.contains("debian"))
}
