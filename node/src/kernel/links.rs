//! Links that outlive this process: made, adopted, swapped and removed by the path of their pin.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    KernelError, mount,
    sys::{self, Hook, Target},
};

/// A link, whether it is there or not.
pub(super) struct Link {
    /// Where it is pinned.
    pub(super) pin: PathBuf,
    /// Where it hooks in.
    pub(super) hook: Hook,
    /// What the kernel calls the target: see [`sys::LinkInfo::target`]. None when the pin's name
    /// says it all.
    pub(super) target_id: Option<u64>,
}

impl Link {
    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> KernelError {
        let path = self.pin.clone();
        move |source| KernelError::Link {
            action,
            path: path.clone(),
            source,
        }
    }

    /// Whether the link is pinned and still attached to its target.
    pub(super) fn is_attached(&self) -> Result<bool, KernelError> {
        Ok(self.find()?.is_some())
    }

    fn find(&self) -> Result<Option<(OwnedFd, sys::LinkInfo)>, KernelError> {
        let Some(link) = sys::pinned(&self.pin).map_err(self.failed("open link"))? else {
            return Ok(None);
        };
        let info = sys::link_info(link.as_fd()).map_err(self.failed("inspect link"))?;
        let is_attached = match self.target_id {
            Some(id) => info.target == id,
            None => info.target != 0,
        };
        Ok(is_attached.then_some((link, info)))
    }

    /// Tag of the program of the link, if that is attached.
    pub(super) fn attached_tag(&self) -> Result<Option<[u8; 8]>, KernelError> {
        let Some((_, info)) = self.find()? else {
            return Ok(None);
        };
        let program = sys::program_by_id(info.program).map_err(self.failed("open program of"))?;
        let info = sys::program_info(program.as_fd()).map_err(self.failed("inspect program of"))?;
        Ok(Some(info.tag))
    }

    /// Makes sure that the link is attached and has the program. A link that is attached gets the
    /// program swapped, if it has another; one that has lost its target is replaced.
    pub(super) fn ensure(
        &self,
        program: BorrowedFd<'_>,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        if let Some((link, info)) = self.find()? {
            if self.is_same(info.program, program)? {
                return Ok(());
            }
            return sys::link_update(link.as_fd(), program).map_err(self.failed("swap program of"));
        }
        remove(&self.pin)?;
        let link = self
            .create(program, target)
            .map_err(self.failed("attach"))?;
        sys::pin(link.as_fd(), &self.pin).map_err(self.failed("pin link"))
    }

    fn create(&self, program: BorrowedFd<'_>, target: Target<'_>) -> io::Result<OwnedFd> {
        let plain = || sys::link_create(program, target, self.hook, 0);
        match self.hook {
            // Beside a socket load balancer, we want to see the address that the pod asked for.
            // Kernels before 6.15 do not know the flag.
            Hook::CgroupConnect4 | Hook::CgroupConnect6 => {
                match sys::link_create(program, target, self.hook, sys::PREORDER) {
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain(),
                    result => result,
                }
            }
            Hook::CgroupEgress | Hook::SkLookup | Hook::TcxIngress => plain(),
        }
    }

    fn is_same(&self, attached: u32, program: BorrowedFd<'_>) -> Result<bool, KernelError> {
        let attached = sys::program_by_id(attached).map_err(self.failed("open program of"))?;
        let info = |program| sys::program_info(program).map_err(self.failed("inspect program of"));
        Ok(info(attached.as_fd())? == info(program)?)
    }
}

/// Detaches the link that is pinned at the path and removes the pin; nothing there is fine.
pub(super) fn remove(pin: &Path) -> Result<(), KernelError> {
    let failed = |action| {
        let path = pin.to_owned();
        move |source| KernelError::Link {
            action,
            path,
            source,
        }
    };
    let Some(link) = sys::pinned(pin).map_err(failed("open link"))? else {
        return Ok(());
    };
    match sys::link_detach(link.as_fd()) {
        // What has lost its target answers with one of these: it is detached already.
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::ENOLINK | libc::ENODEV | libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP)
            ) =>
        {
            return Err(failed("detach")(error));
        }
        _ => {}
    }
    fs::remove_file(pin).map_err(failed("unpin"))
}

/// Removes the directory with all pins in it; links are detached.
pub(super) fn remove_all(directory: &Path) -> Result<(), KernelError> {
    let failed = |source| KernelError::Bpffs {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            remove_all(&path)?;
        } else if remove(&path).is_err() {
            // Maps are no links: unpinning is all there is to do.
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    fs::remove_dir(directory).map_err(failed)
}

/// Names of the entries of a directory; none when it is not there.
pub(super) fn entries(directory: &Path) -> Result<Vec<String>, KernelError> {
    let failed = |source| KernelError::Bpffs {
        path: directory.to_owned(),
        source,
    };
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| {
                Ok(entry
                    .map_err(failed)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned())
            })
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Makes a directory for pins.
pub(super) fn make_directory(path: &Path) -> Result<(), KernelError> {
    mount::make_directory(path).map_err(|source| KernelError::Bpffs {
        path: path.to_owned(),
        source,
    })
}
