//! Finds where the kernel's file systems are mounted, and mounts a bpffs where there is none.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FsWord, statfs};

use super::KernelError;

const BPF_FS_MAGIC: FsWord = 0xcafe_4a11;
const CGROUP2_MAGIC: FsWord = 0x6367_7270;
const SYS_BPFFS: &str = "/sys/fs/bpf";

/// Makes the directory, on a bpffs. Where none is mounted, one is: at `/sys/fs/bpf` for
/// directories below it, at the directory itself otherwise.
pub(super) fn prepare_bpffs(path: &Path) -> Result<(), KernelError> {
    let failed = |source| KernelError::Bpffs {
        path: path.to_owned(),
        source,
    };
    if !is_on_bpffs(path) {
        let place = match path.starts_with(SYS_BPFFS) {
            true => Path::new(SYS_BPFFS),
            false => path,
        };
        fs::create_dir_all(place).map_err(failed)?;
        mount_bpffs(place).map_err(failed)?;
    }
    make_directory(path).map_err(failed)
}

/// Makes the directory and its parents, for root alone.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whether the path, or the first of its parents that exists, is on a bpffs.
pub(super) fn is_on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

/// Whether the path is a directory of cgroup v2.
pub(super) fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC)
}

fn mount_bpffs(place: &Path) -> io::Result<()> {
    let source = c"bpf".as_ptr();
    let place = std::ffi::CString::new(place.as_os_str().as_encoded_bytes())?;
    let data = c"mode=0700".as_ptr().cast();
    // SAFETY: all pointers are to strings that end with a zero and outlive the call.
    let result = unsafe { libc::mount(source, place.as_ptr(), source, 0, data) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds where cgroup v2 is mounted, from the mounts that this process sees. A mount of the whole
/// tree is preferred to one of a part.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    cgroup2_in(&text)
}

fn cgroup2_in(mountinfo: &str) -> Option<PathBuf> {
    // proc_pid_mountinfo(5): id parent device root mount-point options [tags…] - type source …
    let mut mounts: Vec<_> = mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            file_system
                .starts_with("cgroup2 ")
                .then(|| (root != "/", unescape(point)))
        })
        .collect();
    mounts.sort();
    mounts.into_iter().next().map(|(_, point)| point.into())
}

/// The kernel writes blanks in paths as octal numbers.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

/// Inode number of a directory or namespace, which is also the id of a cgroup.
pub(super) fn inode(fd: impl std::os::fd::AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

/// Opens a directory.
pub(super) fn open_directory(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_hybrid_and_unified_machines() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            40 30 0:36 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let unified = "24 18 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let partial = "50 18 0:22 /kubepods/x /a\\040b rw - cgroup2 cgroup2 rw\n\
            24 18 0:22 / /host/cgroup rw - cgroup2 cgroup2 rw\n";
        for (text, expected) in [
            (hybrid, Some("/sys/fs/cgroup/unified")),
            (unified, Some("/sys/fs/cgroup")),
            (partial, Some("/host/cgroup")),
            (partial.split_once('\n').unwrap().0, Some("/a b")),
            ("24 18 0:22 / / rw - ext4 /dev/vda rw\n", None),
        ] {
            assert_eq!(cgroup2_in(text), expected.map(PathBuf::from), "{text}");
        }
    }
}
