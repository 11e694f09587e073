//! Preflight: finds out whether this machine can carry the datapath, by trying.
//!
//! What can be tried is tried: programs are loaded without being pinned, links are made on a
//! cgroup and a network namespace that exist for the trial only. A check that fails says what
//! helps. Nothing is left behind, and nothing that runs is touched.

mod trial;

use std::{fs, path::Path};

use super::{KernelConfig, KernelError, mount, object};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Ok,
    /// It is not there, and something works less well.
    Warn,
    /// It is not there, and Weft does not work.
    Missing,
}

/// One thing that Weft needs or likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do, empty when nothing is to be done.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            outcome: Outcome::Ok,
            found: found.into(),
            remedy: String::new(),
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self {
            name,
            outcome: Outcome::Missing,
            found: found.into(),
            remedy: remedy.to_owned(),
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self {
            outcome: Outcome::Warn,
            ..Self::missing(name, found, remedy)
        }
    }
}

/// Capabilities that the kernel side needs, with their number.
const CAPABILITIES: [(&str, u32); 5] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Looks at everything that the kernel side needs.
pub fn preflight(config: &KernelConfig) -> Vec<Check> {
    let mut checks = vec![
        kernel(),
        datapath(),
        capabilities(),
        bpffs(&config.bpffs),
        cgroup_mount(),
        cgroup(&config.cgroup),
        btf(),
    ];
    if object::is_built_in() {
        checks.extend(trial::run(&config.cgroup));
    }
    checks
}

fn kernel() -> Check {
    let name = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    // TCX links came with 6.6; the namespace's cookie in cgroup_skb with 6.15, which the trial of
    // the guard shows where it was ported back.
    match version(release) {
        Some(version) if version < (6, 6) => Check::missing(
            name,
            release,
            "Weft needs Linux 6.6 or newer (links at tc ingress)",
        ),
        Some(_) => Check::ok(name, release),
        None => Check::warn(
            name,
            release,
            "its version cannot be read; Weft needs Linux 6.6",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn datapath() -> Check {
    let name = "eBPF programs";
    match object::is_built_in() {
        true => Check::ok(name, format!("built in, {} KiB", object::size() / 1024)),
        false => Check::missing(name, "not built in", KernelError::NoDatapath.remedy()),
    }
}

fn capabilities() -> Check {
    let name = "capabilities";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective(&status) else {
        return Check::warn(name, "cannot be read", "mount /proc");
    };
    let lacking = lacking(effective);
    match lacking.is_empty() {
        true => Check::ok(name, "all there"),
        false => Check::missing(
            name,
            format!("without {}", lacking.join(", ")),
            "run weft-node as root, or add them to its security context",
        ),
    }
}

fn effective(status: &str) -> Option<u64> {
    let text = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(text.trim(), 16).ok()
}

fn lacking(effective: u64) -> Vec<&'static str> {
    CAPABILITIES
        .into_iter()
        .filter_map(|(name, bit)| (effective >> bit & 1 == 0).then_some(name))
        .collect()
}

fn bpffs(path: &Path) -> Check {
    let name = "bpffs";
    match mount::is_on_bpffs(path) {
        true => Check::ok(name, format!("{} is on one", path.display())),
        false => Check::warn(
            name,
            format!("none at {}", path.display()),
            "weft-node mounts one; so that pins outlive its container, mount it on the host: \
             mount -t bpf bpf /sys/fs/bpf",
        ),
    }
}

fn cgroup_mount() -> Check {
    let name = "cgroup v2";
    match mount::cgroup2_mount() {
        Some(path) => Check::ok(name, format!("mounted at {}", path.display())),
        None => Check::missing(
            name,
            "not mounted",
            "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        ),
    }
}

fn cgroup(path: &Path) -> Check {
    let name = "attach point";
    match mount::is_cgroup2(path) {
        true => Check::ok(name, path.display().to_string()),
        false => Check::missing(
            name,
            format!("{} is no directory of cgroup v2", path.display()),
            "give --cgroup the cgroup below which the node's pods run",
        ),
    }
}

fn btf() -> Check {
    let name = "kernel BTF";
    let path = "/sys/kernel/btf/vmlinux";
    match Path::new(path).exists() {
        true => Check::ok(name, path),
        // The programs use no kernel structure that is not part of its stable interface.
        false => Check::warn(name, "none", "not needed; tools that inspect Weft like it"),
    }
}

/// The result of a trial, as a check.
fn tried(name: &'static str, result: Result<String, KernelError>) -> Check {
    match result {
        Ok(found) => Check::ok(name, found),
        Err(error) => {
            let remedy = match error.remedy() {
                "" => "this kernel lacks the feature",
                remedy => remedy,
            };
            Check::missing(
                name,
                weft_runtime::logging::report(&error).to_string(),
                remedy,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_what_distributions_write() {
        for (release, expected) in [
            ("6.18.44-fc-v595", Some((6, 18))),
            ("5.15.0-91-generic", Some((5, 15))),
            ("6.1", Some((6, 1))),
            ("7.0-rc1+", Some((7, 0))),
            ("unknown", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn lacking_capabilities_are_named() {
        let status = "Name:\tx\nCapEff:\t0000008000201000\nCapBnd:\t0\n";
        assert_eq!(
            lacking(effective(status).unwrap()),
            ["CAP_SYS_PTRACE", "CAP_PERFMON"]
        );
        assert_eq!(lacking(u64::MAX), Vec::<&str>::new());
        assert_eq!(effective("Name: x"), None);
    }
}
