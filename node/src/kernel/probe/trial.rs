//! Loads every program and makes every kind of link, on a cgroup and a network namespace that are
//! made for the trial and go with it.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process, thread,
};

use aya::{Ebpf, maps::SkStorage};
use rustix::thread::UnshareFlags;
use weft_common::names;

use super::{Check, KernelError, tried};
use crate::kernel::{
    loader, mount,
    object::Template,
    sys::{self, Hook, Target},
};

/// Tries everything; what an earlier failure keeps from being tried is left out.
pub(super) fn run(attach_point: &Path) -> Vec<Check> {
    let mut object = match Template::new(None).and_then(|template| template.load((0, 0))) {
        Ok(object) => object,
        Err(error) => return vec![tried("maps", Err(error))],
    };
    let mut checks = vec![tried("maps", lend(&mut object))];
    let mut load = |program| {
        let loaded = loader::load_program(&mut object, program);
        let (fd, result) = match loaded {
            Ok(fd) => (Some(fd), Ok("loads".to_owned())),
            Err(error) => (None, Err(error)),
        };
        checks.push(tried(program, result));
        fd
    };
    let connect4 = load(names::CAPTURE_CONNECT4);
    load(names::CAPTURE_CONNECT6);
    let guard = load(names::GUARD_EGRESS);
    let outbound = load(names::STEER_OUTBOUND);
    let inbound = load(names::STEER_INBOUND);
    if let (Some(connect4), Some(guard)) = (connect4, guard) {
        checks.push(cgroup_links(attach_point, &connect4, &guard));
    }
    if let (Some(outbound), Some(inbound)) = (outbound, inbound) {
        checks.push(tried(
            "links in pods",
            in_new_namespace(|| pod_links(&outbound, &inbound)),
        ));
    }
    checks.push(neighbours(attach_point));
    checks
}

/// Enters a socket of ours in the map of lent sockets.
fn lend(object: &mut Ebpf) -> Result<String, KernelError> {
    let map = names::LENT;
    let failed = |source| KernelError::Map {
        action: "write",
        map,
        source: Box::new(source),
    };
    let socket = TcpListener::bind("127.0.0.1:0").map_err(|source| KernelError::Socket {
        action: "make a socket for",
        map,
        source,
    })?;
    let lent = object.map_mut(map).ok_or_else(|| KernelError::Invalid {
        what: "eBPF object",
        value: map.to_owned(),
    })?;
    let mut lent = SkStorage::<_, u32>::try_from(lent).map_err(failed)?;
    lent.insert(&socket, 1, 0).map_err(failed)?;
    Ok("made; sockets can be tagged".to_owned())
}

fn cgroup_links(attach_point: &Path, connect4: &OwnedFd, guard: &OwnedFd) -> Check {
    let name = "links on cgroups";
    let scratch = attach_point.join(format!("weft-preflight-{}", process::id()));
    let result = Scratch::new(scratch).and_then(|scratch| {
        let cgroup = mount::open_directory(&scratch.0)?;
        let target = Target::Fd(cgroup.as_fd());
        let _guard = sys::link_create(guard.as_fd(), target, Hook::CgroupEgress, 0)?;
        let connect4 = connect4.as_fd();
        match sys::link_create(connect4, target, Hook::CgroupConnect4, sys::PREORDER) {
            Ok(_link) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                sys::link_create(connect4, target, Hook::CgroupConnect4, 0).map(|_link| false)
            }
            Err(error) => Err(error),
        }
    });
    match result {
        Ok(true) => Check::ok(name, "attach, before other programs"),
        Ok(false) => Check::warn(
            name,
            "attach, in the order of coming",
            "this kernel knows no order (6.15 does): start Weft before another socket load \
             balancer, or restrict that to the host's namespace",
        ),
        Err(source) => {
            let path = attach_point.to_owned();
            tried(
                name,
                Err(KernelError::Link {
                    action: "attach",
                    path,
                    source,
                }),
            )
        }
    }
}

/// A directory that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

fn pod_links(outbound: &OwnedFd, inbound: &OwnedFd) -> Result<String, KernelError> {
    const LO: u32 = 1;
    let failed = |action| {
        move |source| KernelError::Link {
            action,
            path: "a new network namespace".into(),
            source,
        }
    };
    let netns = File::open("/proc/thread-self/ns/net").map_err(failed("open"))?;
    let _outbound = sys::link_create(
        outbound.as_fd(),
        Target::Fd(netns.as_fd()),
        Hook::SkLookup,
        0,
    )
    .map_err(failed("attach socket lookup"))?;
    let _inbound = sys::link_create(inbound.as_fd(), Target::Interface(LO), Hook::TcxIngress, 0)
        .map_err(failed("attach at tc ingress"))?;
    Ok("attach".to_owned())
}

/// Runs something on a thread of its own, in a network namespace of its own.
fn in_new_namespace<T: Send>(
    run: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    let failed = |source| KernelError::Link {
        action: "make",
        path: "a new network namespace".into(),
        source,
    };
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a new network namespace for this thread alone shares nothing that Rust's
            // memory model knows of; file descriptors and memory stay shared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|error| failed(error.into()))?;
            run()
        });
        let panicked = |_| Err(failed(io::Error::other("the trial panicked")));
        thread.join().unwrap_or_else(panicked)
    })
}

/// Looks for other programs that see our pods' connects.
fn neighbours(attach_point: &Path) -> Check {
    let name = "neighbours";
    let found = mount::open_directory(attach_point).and_then(|cgroup| {
        let programs = sys::cgroup_programs(cgroup.as_fd(), Hook::CgroupConnect4)?;
        programs
            .into_iter()
            .map(|id| Ok(sys::program_info(sys::program_by_id(id)?.as_fd())?.name))
            .collect::<io::Result<Vec<_>>>()
    });
    match found {
        Err(error) => Check::warn(name, format!("cannot be read: {error}"), ""),
        Ok(programs) => {
            let others: Vec<_> = programs
                .into_iter()
                .filter(|name| !name.starts_with("capture_connect"))
                .collect();
            match others.is_empty() {
                true => Check::ok(name, "no other program at connect"),
                false => Check::warn(
                    name,
                    others.join(", "),
                    "if one of them replaces service addresses (kube-proxy replacement), Weft sees \
                     backends instead of services: restrict it to the host's namespace \
                     (Cilium: socketLB.hostNamespaceOnly=true)",
                ),
            }
        }
    }
}
