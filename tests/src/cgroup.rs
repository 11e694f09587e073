//! The cgroup2 hierarchy: where it is mounted, and groups below it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::eventually::eventually;

/// Where cgroup2 is mounted. On hybrid systems that is not `/sys/fs/cgroup`.
///
/// # Errors
/// When it is mounted nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    find_mount(&mounts).context("no cgroup2 mount: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let is_cgroup2 = source.split_whitespace().next() == Some("cgroup2");
        // Field 4 is the mounted part of the hierarchy: only its root can hold all pods.
        let mut fields = mount.split_whitespace().skip(3);
        let is_root = fields.next() == Some("/");
        (is_cgroup2 && is_root).then(|| fields.next().map(PathBuf::from))?
    })
}

/// Makes a group with its parents.
///
/// # Errors
/// When the kernel refuses.
pub fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create cgroup {}", path.display()))
}

/// Processes of the group and of all below it.
pub fn processes(path: &Path) -> Vec<u32> {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = own.lines().filter_map(|pid| pid.parse().ok()).collect();
    for child in children(path) {
        pids.extend(processes(&child));
    }
    pids
}

/// Kills every process of the group and below, and removes the groups.
///
/// # Errors
/// When a process cannot be killed, so that the group stays.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Kernel 5.14. Without it the loop below reports what is left.
    let kill = fs::write(path.join("cgroup.kill"), "1");
    eventually(
        &format!("cgroup {} empty", path.display()),
        || match processes(path).len() {
            0 => Ok(()),
            left => bail!("{left} processes left; cgroup.kill: {kill:?}"),
        },
    )?;
    eventually(&format!("cgroup {} removed", path.display()), || {
        remove_tree(path).with_context(|| format!("rmdir {}", path.display()))
    })
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_cgroup2_is_found_on_hybrid_systems() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            40 31 0:41 /some/part /mnt rw,relatime - cgroup2 cgroup2 rw\n\
            41 31 0:41 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_mount(mounts),
            Some("/sys/fs/cgroup/unified".into()),
            "the first root of the hierarchy"
        );
        assert_eq!(find_mount("31 23 0:28 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
