//! The few bpf(2) calls that aya does not offer: cgroup links with an order, swapping a link's
//! program, what a link is attached to, and socket maps whose values are cookies.
//!
//! Every call fills a structure of the kernel's layout (`include/uapi/linux/bpf.h`), zeroed where
//! it has no say, and gives its address and size to the kernel.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `BPF_F_PREORDER`: run before what is attached further down, and before those without it.
pub(super) const PREORDER: u32 = 1 << 6;
const QUERY_EFFECTIVE: u32 = 1;

/// Where a program hooks in: the kernel's `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Hook {
    CgroupEgress = 1,
    CgroupConnect4 = 10,
    CgroupConnect6 = 11,
    SkLookup = 36,
    TcxIngress = 46,
}

/// What a link joins its program to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// A cgroup or a network namespace.
    Fd(BorrowedFd<'a>),
    /// An interface of this thread's network namespace.
    Interface(u32),
}

/// What is known of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Number of its program.
    pub(super) program: u32,
    /// Id of its cgroup, inode number of its network namespace, or number of its interface. 0 once
    /// that is gone.
    pub(super) target: u64,
}

/// What is known of a program: enough to see whether two are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    /// Hash of the instructions.
    pub(super) tag: [u8; 8],
    /// Numbers of the maps it uses, sorted.
    pub(super) maps: Vec<u32>,
    /// Its name, cut to 15 bytes by the kernel.
    pub(super) name: String,
}

/// Runs one bpf(2) command.
fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i32> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a live, exclusively borrowed structure of `size` bytes; each caller
    // below makes sure that the addresses in it outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a command that answers with a new file descriptor.
fn bpf_fd<T>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel made the descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of).expose_provenance() as u64
}

fn address_mut<T>(of: &mut T) -> u64 {
    std::ptr::from_mut(of).expose_provenance() as u64
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    hook: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Attaches the program by a new link.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    hook: Hook,
    flags: u32,
) -> io::Result<OwnedFd> {
    let target = match target {
        Target::Fd(fd) => raw(fd),
        Target::Interface(index) => index,
    };
    let (program, hook) = (raw(program), hook as u32);
    bpf_fd(
        LINK_CREATE,
        &mut LinkCreate {
            program,
            target,
            hook,
            flags,
            ..LinkCreate::default()
        },
    )
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

/// Puts another program in the link's place, without a moment between.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = LinkUpdate {
        link: raw(link),
        program: raw(program),
        flags: 0,
        old: 0,
    };
    bpf(LINK_UPDATE, &mut update).map(drop)
}

/// Detaches the link at once; removing its last pin would do so later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut raw(link)).map(drop)
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, program or link at the path.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let path_address = path.as_ptr().expose_provenance() as u64;
    bpf(
        OBJ_PIN,
        &mut Object {
            path: path_address,
            fd: raw(fd),
            flags: 0,
        },
    )
    .map(drop)
}

/// Opens what is pinned at the path; none when nothing is.
pub(super) fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let path_address = path.as_ptr().expose_provenance() as u64;
    match bpf_fd(
        OBJ_GET,
        &mut Object {
            path: path_address,
            fd: 0,
            flags: 0,
        },
    ) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T>(fd: BorrowedFd<'_>, into: &mut T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let info = address_mut(into);
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut InfoByFd {
            fd: raw(fd),
            length,
            info,
        },
    )
    .map(drop)
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// A union; which member depends on `kind`.
    first: u64,
    second: u64,
}

const LINK_TYPE_CGROUP: u32 = 3;

/// Says what the link joins.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut raw = RawLinkInfo::default();
    info(link, &mut raw)?;
    let target = match raw.kind {
        LINK_TYPE_CGROUP => raw.first,
        // Namespaces and interfaces are numbered by the first 32 bits.
        _ => {
            let [a, b, c, d, ..] = raw.first.to_ne_bytes();
            u64::from(u32::from_ne_bytes([a, b, c, d]))
        }
    };
    Ok(LinkInfo {
        program: raw.program,
        target,
    })
}

#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    uid: u32,
    maps_length: u32,
    maps: u64,
    name: [u8; 16],
}

/// Says what the program is.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut maps = [0_u32; 32];
    let mut raw = RawProgramInfo {
        maps_length: u32::try_from(maps.len()).map_err(io::Error::other)?,
        maps: address_mut(&mut maps),
        ..RawProgramInfo::default()
    };
    info(program, &mut raw)?;
    let count = usize::try_from(raw.maps_length)
        .map_err(io::Error::other)?
        .min(maps.len());
    let mut maps = maps[..count].to_vec();
    maps.sort_unstable();
    let name = raw.name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(ProgramInfo {
        tag: raw.tag,
        maps,
        name,
    })
}

/// Number of the program.
#[cfg(feature = "kernel-log")]
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut raw = RawProgramInfo::default();
    info(program, &mut raw)?;
    Ok(raw.id)
}

/// Opens the program with the number.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(PROG_GET_FD_BY_ID, &mut [id, 0, 0])
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    hook: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Numbers of the programs that run at the cgroup's hook, in their order.
pub(super) fn cgroup_programs(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; 64];
    let mut query = Query {
        target: raw(cgroup),
        hook: hook as u32,
        flags: QUERY_EFFECTIVE,
        programs: address_mut(&mut programs),
        count: 64,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count)
        .map_err(io::Error::other)?
        .min(programs.len());
    Ok(programs[..count].to_vec())
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts the socket at the index of a socket map.
pub(super) fn socket_set(
    map: BorrowedFd<'_>,
    index: u32,
    socket: BorrowedFd<'_>,
) -> io::Result<()> {
    let value = u64::from(raw(socket.as_fd()));
    let (key, value) = (address(&index), address(&value));
    bpf(
        MAP_UPDATE_ELEM,
        &mut Element {
            map: raw(map),
            pad: 0,
            key,
            value,
            flags: 0,
        },
    )
    .map(drop)
}

/// Cookie of the socket at the index of a socket map; none when the place is empty.
pub(super) fn socket_cookie(map: BorrowedFd<'_>, index: u32) -> io::Result<Option<u64>> {
    let mut cookie = 0_u64;
    let (key, value) = (address(&index), address_mut(&mut cookie));
    match bpf(
        MAP_LOOKUP_ELEM,
        &mut Element {
            map: raw(map),
            pad: 0,
            key,
            value,
            flags: 0,
        },
    ) {
        Ok(_) => Ok(Some(cookie)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Empties the index of a socket map, if it is not empty already.
pub(super) fn socket_clear(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let key = address(&index);
    match bpf(
        MAP_DELETE_ELEM,
        &mut Element {
            map: raw(map),
            pad: 0,
            key,
            value: 0,
            flags: 0,
        },
    ) {
        Ok(_) => Ok(()),
        // What an empty place answers.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
