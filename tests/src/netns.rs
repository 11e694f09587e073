//! Network namespaces, by name as `ip netns` keeps them.
//!
//! A value is only a name: namespaces go with their world ([`crate::leftovers`]) or by
//! [`Netns::delete`], never on drop, so that handles can be copied freely.

use std::{fs::File, os::fd::AsFd as _, path::PathBuf};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::Launch;

/// A named network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace and takes its loopback up.
    ///
    /// # Errors
    /// When `ip netns` refuses.
    pub fn create(name: &str) -> Result<Self> {
        Launch::new("ip").args(["netns", "add", name]).run()?;
        let netns = Self {
            name: name.to_owned(),
        };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// A namespace that exists already.
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the namespace is bound, as CNI's `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// What a person types to enter the namespace.
    pub fn enter_command(&self) -> String {
        format!("nsenter --net={}", self.path().display())
    }

    /// Removes the name; the namespace goes with its last user.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn delete(&self) -> Result<()> {
        Launch::new("ip")
            .args(["netns", "del", &self.name])
            .run()
            .map(drop)
    }

    /// Runs one `ip` command line in the namespace.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, line: &str) -> Result<String> {
        Launch::new("ip")
            .args(["-n", &self.name])
            .args(line.split_whitespace())
            .run()
    }

    /// Runs several `ip` command lines in the namespace, with one process.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let mut script = lines.join("\n");
        script.push('\n');
        Launch::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(script.into_bytes())
            .run()
            .with_context(|| lines.join("; "))
            .map(drop)
    }

    /// Writes `/proc/sys/net/KEY` as seen in the namespace.
    ///
    /// # Errors
    /// When there is no such setting.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys/net").join(key);
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("write {value} to {}", path.display()))
    }

    /// Runs a closure on a thread of its own inside the namespace.
    ///
    /// For servers, captures and looks at the kernel only: a thread shares the cgroup of its
    /// process, so **what it connects is not captured** as a pod's process would be. Clients whose
    /// traffic is to be meshed must be processes: [`crate::Pod::launch`].
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, rustix::io::Errno>(closure())
            });
            match thread.join() {
                Ok(result) => result.with_context(|| format!("enter namespace {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A descriptor of the namespace.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("open namespace {}", self.name))
    }
}
