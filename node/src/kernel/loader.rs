//! Loads the programs, makes or adopts the pinned maps, and keeps the cgroup's links.
//!
//! ```text
//! <bpffs>/v<ABI>/maps/<MAP>                                shared by all programs
//!                links/<program>                           on the cgroup
//!                pods/<uid>/outbound-<cookie>-<slot>       on the pod's network namespace
//!                          inbound-<ifindex>-<cookie>-<slot>
//! ```
//! Opening is the same whether something is there or not: maps are opened or made by their pin,
//! programs are loaded anew (milliseconds) and swapped into links that have other ones.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError},
};
use parking_lot::Mutex;
use weft_common::{ABI, Settings, names};

use super::{
    KernelConfig, KernelError,
    links::{self, Link},
    maps::Maps,
    mount,
    object::{self, Template},
    sys::{self, Hook, Target},
};

/// Programs on the cgroup, in the order in which they are attached: the guard first, so that there
/// is no moment in which capture runs without it.
const CGROUP_PROGRAMS: [(&str, Hook); 3] = [
    (names::GUARD_EGRESS, Hook::CgroupEgress),
    (names::CAPTURE_CONNECT4, Hook::CgroupConnect4),
    (names::CAPTURE_CONNECT6, Hook::CgroupConnect6),
];

/// The kernel side of this node. Cheap to share in an `Arc`; calls may come from any thread.
pub struct Kernel {
    pub(super) paths: Paths,
    pub(super) maps: Mutex<Maps>,
    /// Tags of the steering programs of this version, to see which pods have older ones.
    pub(super) tags: SteeringTags,
    pub(super) template: Template,
    cgroup: Cgroup,
}

/// Tags of the steering programs.
pub(super) struct SteeringTags {
    pub(super) outbound: [u8; 8],
    pub(super) inbound: [u8; 8],
}

struct Cgroup {
    directory: OwnedFd,
    id: u64,
    programs: Vec<(&'static str, Hook, OwnedFd)>,
}

/// Where the pins are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) root: PathBuf,
    pub(super) maps: PathBuf,
    links: PathBuf,
    pub(super) pods: PathBuf,
}

impl Paths {
    fn new(bpffs: &Path) -> Self {
        let root = bpffs.join(format!("v{ABI}"));
        Self {
            maps: root.join(names::PIN_MAPS),
            links: root.join(names::PIN_LINKS),
            pods: root.join(names::PIN_PODS),
            root,
        }
    }
}

impl Kernel {
    /// Loads the programs and attaches them to the cgroup; adopts what is pinned.
    ///
    /// # Errors
    /// One variant per step, each with what was being done; [`KernelError::remedy`] says what helps.
    pub fn open(config: &KernelConfig) -> Result<Self, KernelError> {
        if !object::is_built_in() {
            return Err(KernelError::NoDatapath);
        }
        let paths = Paths::new(&config.bpffs);
        mount::prepare_bpffs(&config.bpffs)?;
        for directory in [&paths.root, &paths.maps, &paths.links, &paths.pods] {
            links::make_directory(directory)?;
        }
        let template = Template::new(Some(&paths.maps))?;
        let mut object = template.load((0, 0))?;
        let mut maps = Maps::take(&mut object, &paths.maps)?;
        // Before anything is attached: programs without settings pass everything.
        maps.write_settings(config.settings)?;
        let tags = SteeringTags {
            outbound: tag(&load_program(&mut object, names::STEER_OUTBOUND)?)?,
            inbound: tag(&load_program(&mut object, names::STEER_INBOUND)?)?,
        };
        let cgroup = Cgroup::new(&config.cgroup, &mut object)?;
        let kernel = Self {
            paths,
            maps: Mutex::new(maps),
            tags,
            template,
            cgroup,
        };
        kernel.repair_cgroup_links()?;
        Ok(kernel)
    }

    /// Attaches the cgroup's programs where they are missing, and swaps older ones.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn repair_cgroup_links(&self) -> Result<(), KernelError> {
        let cgroup = Target::Fd(self.cgroup.directory.as_fd());
        for (name, hook, program) in &self.cgroup.programs {
            self.cgroup_link(name, *hook)
                .ensure(program.as_fd(), cgroup)?;
        }
        Ok(())
    }

    /// Detaches and removes what daemons of older versions left, and gives its directories. Call it
    /// when the pods are adopted: until then, the older programs guard them.
    ///
    /// # Errors
    /// When something cannot be removed; what comes before it is gone.
    pub fn remove_older(&self) -> Result<Vec<PathBuf>, KernelError> {
        let bpffs = self.paths.root.parent().unwrap_or(&self.paths.root);
        let mut older = versions(bpffs)?;
        older.retain(|(abi, _)| *abi < ABI);
        for (_, root) in &older {
            remove_version(root)?;
        }
        Ok(older.into_iter().map(|(_, root)| root).collect())
    }

    /// Names of the cgroup's programs that are not attached.
    pub(super) fn detached_cgroup_programs(&self) -> Result<Vec<&'static str>, KernelError> {
        let mut detached = Vec::new();
        for (name, hook, _) in &self.cgroup.programs {
            if !self.cgroup_link(name, *hook).is_attached()? {
                detached.push(*name);
            }
        }
        Ok(detached)
    }

    /// One of the programs; all use the same maps.
    #[cfg(feature = "kernel-log")]
    pub(super) fn any_program(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        let (_, _, program) = self.cgroup.programs.first()?;
        Some(program.as_fd())
    }

    fn cgroup_link(&self, name: &str, hook: Hook) -> Link {
        Link {
            pin: self.paths.links.join(name),
            hook,
            target_id: Some(self.cgroup.id),
        }
    }
}

impl Cgroup {
    fn new(path: &Path, object: &mut Ebpf) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Cgroup {
            path: path.to_owned(),
            source,
        };
        let directory = mount::open_directory(path).map_err(failed)?;
        if !mount::is_cgroup2(path) {
            return Err(failed(std::io::ErrorKind::InvalidInput.into()));
        }
        let id = mount::inode(&directory).map_err(failed)?;
        let programs = CGROUP_PROGRAMS
            .into_iter()
            .map(|(name, hook)| Ok((name, hook, load_program(object, name)?)))
            .collect::<Result<_, KernelError>>()?;
        Ok(Self {
            directory,
            id,
            programs,
        })
    }
}

/// Has the kernel check and take the program.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "we have four of aya's kinds of programs"
)]
pub(super) fn load_program(
    object: &mut Ebpf,
    program: &'static str,
) -> Result<OwnedFd, KernelError> {
    let failed = |source| KernelError::Program {
        program,
        source: Box::new(source),
    };
    let found = object
        .program_mut(program)
        .ok_or_else(|| KernelError::Invalid {
            what: "eBPF object",
            value: program.to_owned(),
        })?;
    match found {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(failed)?;
    let fd = found.fd().map_err(failed)?.as_fd();
    fd.try_clone_to_owned()
        .map_err(|error| failed(ProgramError::IOError(error)))
}

fn tag(program: &OwnedFd) -> Result<[u8; 8], KernelError> {
    let failed = |source| KernelError::Link {
        action: "inspect program",
        path: "".into(),
        source,
    };
    Ok(sys::program_info(program.as_fd()).map_err(failed)?.tag)
}

/// Detaches everything and removes all pins, of every version, below the configured directory.
///
/// # Errors
/// When something cannot be removed; what comes before it is gone.
pub fn cleanup(config: &KernelConfig) -> Result<(), KernelError> {
    let bpffs = &config.bpffs;
    if !mount::is_on_bpffs(bpffs) {
        return Ok(());
    }
    for (_, root) in versions(bpffs)? {
        remove_version(&root)?;
    }
    Ok(())
}

/// The versions whose pins are in the directory, each with its root.
fn versions(bpffs: &Path) -> Result<Vec<(u32, PathBuf)>, KernelError> {
    let entries = links::entries(bpffs)?;
    let version = |name: &String| {
        let abi = name.strip_prefix('v')?.parse().ok()?;
        Some((abi, bpffs.join(name)))
    };
    Ok(entries.iter().filter_map(version).collect())
}

/// Removes a version's pins. Its capture goes first: marks that nothing steers lead nowhere.
fn remove_version(root: &Path) -> Result<(), KernelError> {
    for part in [names::PIN_LINKS, names::PIN_PODS] {
        links::remove_all(&root.join(part))?;
    }
    links::remove_all(root)
}

/// The settings that are used when nobody asks for others.
impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            bpffs: "/sys/fs/bpf/weft".into(),
            cgroup: mount::cgroup2_mount().unwrap_or_else(|| "/sys/fs/cgroup".into()),
            settings: Settings::default(),
        }
    }
}
