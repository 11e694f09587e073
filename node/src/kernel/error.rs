//! Why the kernel side could not do something, and what can be done about it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Why the kernel side could not do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The binary was built without the eBPF object.
    #[error("this binary was built without the eBPF programs")]
    NoDatapath,
    /// There is no bpffs, and none could be mounted; or a directory on it could not be made.
    #[error("prepare {path} on a bpffs")]
    Bpffs {
        /// What was to be prepared.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup cannot be used.
    #[error("open {path} as a directory of cgroup v2")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The eBPF object could not be read, or its maps not be made.
    #[error("load the eBPF object and its maps")]
    Object(#[source] Box<EbpfError>),
    /// The kernel refused a program.
    #[error("load program {program}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// What the kernel said, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// A pinned map has another shape than this version's.
    #[error("pinned map {map} in {path} has another shape")]
    MapDiffers {
        /// Name of the map.
        map: &'static str,
        /// Directory of its pin.
        path: PathBuf,
    },
    /// A map could not be read or written.
    #[error("{action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// A socket could not be entered in a map, or not be found there.
    #[error("{action} map {map}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program could not be attached, swapped or detached.
    #[error("{action} at {path}")]
    Link {
        /// What was tried.
        action: &'static str,
        /// Where the link is pinned.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pod is not known.
    #[error("no pod with network namespace cookie {cookie}")]
    UnknownPod {
        /// The cookie that was asked for.
        cookie: u64,
    },
    /// A name or number from the caller cannot be used.
    #[error("{what} cannot be used: {value}")]
    Invalid {
        /// What it should have been.
        what: &'static str,
        /// What it is.
        value: String,
    },
}

impl KernelError {
    /// Name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoDatapath => "no_datapath",
            Self::Bpffs { .. } => "bpffs",
            Self::Cgroup { .. } => "cgroup",
            Self::Object(_) => "object",
            Self::Program { .. } => "program",
            Self::MapDiffers { .. } => "map_differs",
            Self::Map { .. } => "map",
            Self::Socket { .. } => "socket",
            Self::Link { .. } => "link",
            Self::UnknownPod { .. } => "unknown_pod",
            Self::Invalid { .. } => "invalid",
        }
    }

    /// What an operator can do; empty when it is for us to repair.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most of aya's errors have no remedy of their own"
    )]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoDatapath => "run `cargo xtask build-ebpf` and build weft-node again",
            Self::Bpffs { .. } => {
                "mount a bpffs (`mount -t bpf bpf /sys/fs/bpf`) or give CAP_SYS_ADMIN"
            }
            Self::Cgroup { .. } => {
                "give --cgroup a directory of cgroup v2; `weft-node preflight` shows its mount"
            }
            Self::Object(error) => match error.as_ref() {
                EbpfError::MapError(error) => map_remedy(error),
                _ => UNKNOWN,
            },
            Self::Program { source, .. } => match source.as_ref() {
                ProgramError::LoadError { io_error, .. } => io_remedy(io_error),
                _ => UNKNOWN,
            },
            Self::MapDiffers { .. } => "run `weft-node cleanup`, then start again",
            Self::Map { source, .. } => map_remedy(source),
            Self::Socket { source, .. } | Self::Link { source, .. } => io_remedy(source),
            Self::UnknownPod { .. } | Self::Invalid { .. } => "",
        }
    }
}

const UNKNOWN: &str = "run `weft-node preflight`: the kernel may lack a feature";

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "most of aya's errors have no remedy of their own"
)]
fn map_remedy(error: &MapError) -> &'static str {
    match error {
        MapError::SyscallError(error) => io_remedy(&error.io_error),
        MapError::CreateError { io_error, .. } => io_remedy(io_error),
        _ => "",
    }
}

fn io_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "give CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN; a locked-down kernel may \
             forbid eBPF as a whole"
        }
        Some(libc::E2BIG) => {
            "the map is full: mesh fewer pods on this node, or skip fewer networks"
        }
        Some(libc::ENOSPC) => "the map or the memory for it is full",
        Some(libc::ENOMEM) => "raise the memory limit of weft-node",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let error = KernelError::Link {
            action: "attach",
            path: "/p".into(),
            source,
        };
        assert!(error.remedy().contains("CAP_BPF"), "{}", error.remedy());
        assert_eq!(error.label(), "link");
    }
}
