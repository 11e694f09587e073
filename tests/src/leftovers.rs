//! What a world is made of outside its process, and how all of it is removed.
//!
//! Run at the start of a world (the run before may have been killed), at its end, and by
//! `weft-demo --once` as a check that nothing stayed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{cgroup, process::Launch};

/// Names of everything that belongs to a world.
#[derive(Clone, Debug)]
pub struct Leftovers {
    prefix: String,
}

/// What was found of a world.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Processes in its cgroups.
    pub processes: Vec<u32>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Mounts: the BPF file systems that hold its pins.
    pub mounts: Vec<PathBuf>,
    /// Cgroups.
    pub cgroups: Vec<PathBuf>,
    /// Folders with its state.
    pub folders: Vec<PathBuf>,
}

impl Found {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} namespaces, {} mounts, {} cgroups, {} folders",
            self.processes.len(),
            self.namespaces.len(),
            self.mounts.len(),
            self.cgroups.len(),
            self.folders.len(),
        )
    }
}

impl Leftovers {
    /// Of the world with this prefix (see [`crate::World::prefix`]).
    pub fn of(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// Where the world with this prefix keeps its files.
    pub fn folder(prefix: &str) -> PathBuf {
        std::env::temp_dir().join(prefix)
    }

    /// Looks for everything.
    ///
    /// # Errors
    /// When cgroup2 is not mounted.
    pub fn find(&self) -> Result<Found> {
        let root = cgroup::mount_point()?;
        let cgroups = self.entries(&root);
        Ok(Found {
            processes: cgroups
                .iter()
                .flat_map(|path| cgroup::processes(path))
                .collect(),
            namespaces: self
                .entries(Path::new("/run/netns"))
                .iter()
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect(),
            mounts: self.mounts(),
            folders: self.entries(&std::env::temp_dir()),
            cgroups,
        })
    }

    /// Removes everything: processes first, so that nothing comes back.
    ///
    /// # Errors
    /// When something cannot be removed; the rest is, as far as possible.
    pub fn remove(&self) -> Result<()> {
        let found = self.find()?;
        let mut first_error = Ok(());
        let mut keep = |result: Result<()>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        for path in &found.cgroups {
            keep(cgroup::remove(path));
        }
        for name in &found.namespaces {
            keep(
                Launch::new("ip")
                    .args(["netns", "del", name])
                    .run()
                    .map(drop),
            );
        }
        for path in found.mounts.iter().rev() {
            keep(Launch::new("umount").arg(path).run().map(drop));
        }
        for path in &found.folders {
            keep(fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display())));
        }
        first_error
    }

    /// Entries of a folder whose name is the prefix, or begins with it and a hyphen.
    fn entries(&self, folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| self.owns(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect()
    }

    fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let folder = Self::folder(&self.prefix);
        let temp = std::env::temp_dir();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mountinfo
            .lines()
            .filter_map(|line| line.split_whitespace().nth(4).map(PathBuf::from))
            .filter(|path| {
                path.strip_prefix(&temp).is_ok_and(|below| {
                    below
                        .components()
                        .next()
                        .is_some_and(|first| self.owns(&first.as_os_str().to_string_lossy()))
                }) || path.starts_with(&folder)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_owns_its_name_and_what_begins_with_it() {
        let leftovers = Leftovers::of("weft-t-1a");
        for (name, owned) in [
            ("weft-t-1a", true),
            ("weft-t-1a-web", true),
            ("weft-t-1ab-web", false),
            ("weft-t", false),
        ] {
            assert_eq!(leftovers.owns(name), owned, "{name}");
        }
    }
}
