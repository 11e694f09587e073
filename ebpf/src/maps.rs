//! The maps, and lookups in them that the library's decisions ask for.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        bpf_map_type::{BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_SOCKMAP},
        bpf_sock,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::{bpf_map_lookup_elem, bpf_sk_storage_get},
    macros::btf_map,
    maps::lpm_trie::Key,
};
use weft_common::{
    Addr, Direction, MAX_PODS, NET_UNKNOWN, PodEntry, Port, REASONS, Settings, SkipNet, SkipPort,
};
use weft_ebpf::Skips;

const PODS_SIZE: usize = MAX_PODS as usize;
/// Per pod: a handful of networks and addresses, or a range of ports that splits badly (30).
const SKIPS_SIZE: usize = PODS_SIZE * 32;
/// `BPF_F_NO_PREALLOC | BPF_F_CLONE`: accepted sockets inherit the entry of their listener.
const LENT_FLAGS: usize = 0x1 | 0x200;
/// `BPF_F_NO_PREALLOC`, which longest-prefix maps must have.
const LPM_FLAGS: usize = 0x1;

#[btf_map]
pub(crate) static PODS: HashMap<u64, PodEntry, PODS_SIZE> = HashMap::new();
#[btf_map]
static LISTENERS: Sockets = Sockets::new();
#[btf_map]
pub(crate) static LENT: Lent = Lent::new();
#[btf_map]
static SKIP_PORTS: LpmTrie<SkipPort, u32, SKIPS_SIZE, LPM_FLAGS> = LpmTrie::new();
#[btf_map]
static SKIP_NETS: LpmTrie<SkipNet, u32, SKIPS_SIZE, LPM_FLAGS> = LpmTrie::new();
#[btf_map]
pub(crate) static CGROUPS: HashMap<u64, u64, PODS_SIZE> = HashMap::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, REASONS> = PerCpuArray::new();
#[btf_map]
pub(crate) static GUARD_EVENTS: RingBuf<(), 65536> = RingBuf::new();
#[btf_map]
pub(crate) static GUARD_SEEN: LruHashMap<u64, u64, PODS_SIZE> = LruHashMap::new();
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// The definition of a map as BTF has it, for maps that aya-ebpf's own types cannot describe.
#[repr(C)]
pub(crate) struct Definition<K, V, const TYPE: usize, const SIZE: usize, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; SIZE],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers are never followed; the loader replaces the static by the map.
unsafe impl<K, V, const TYPE: usize, const SIZE: usize, const FLAGS: usize> Sync
    for Definition<K, V, TYPE, SIZE, FLAGS>
{
}

impl<K, V, const TYPE: usize, const SIZE: usize, const FLAGS: usize>
    Definition<K, V, TYPE, SIZE, FLAGS>
{
    const fn new() -> Self {
        use core::ptr::null;
        Self {
            r#type: null(),
            key: null(),
            value: null(),
            max_entries: null(),
            map_flags: null(),
        }
    }

    fn map(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Sockets by index. The value is eight bytes long, so that user space can read back the cookie of
/// the socket that is there.
pub(crate) type Sockets =
    Definition<u32, u64, { BPF_MAP_TYPE_SOCKMAP as usize }, { PODS_SIZE * 4 }, 0>;

/// Storage beside sockets; aya-ebpf's own type cannot be given `BPF_F_CLONE`.
pub(crate) type Lent = Definition<i32, u32, { BPF_MAP_TYPE_SK_STORAGE as usize }, 0, LENT_FLAGS>;

impl Lent {
    /// Whether weft-node lent the socket.
    ///
    /// # Safety
    /// `sk` is a socket that the verifier knows, not null.
    #[inline(always)]
    pub(crate) unsafe fn contains(&self, sk: *mut bpf_sock) -> bool {
        // SAFETY: the map is ours, the socket is the caller's promise, and nothing is created.
        let value = unsafe { bpf_sk_storage_get(self.map(), sk.cast(), core::ptr::null_mut(), 0) };
        !value.is_null()
    }
}

/// The one settings record. None only before user space has written it, which it does first.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// The pod whose network namespace has the cookie.
#[inline(always)]
pub(crate) fn pod(cookie: u64) -> Option<PodEntry> {
    // SAFETY: the entry is copied at once; user space replaces entries whole.
    unsafe { PODS.get(cookie) }.copied()
}

/// The listener at the index; release it with `bpf_sk_release`.
#[inline(always)]
pub(crate) fn listener(index: u32) -> Option<*mut c_void> {
    // SAFETY: the map is ours and its key is a u32.
    let sk = unsafe { bpf_map_lookup_elem(LISTENERS.map(), core::ptr::from_ref(&index).cast()) };
    (!sk.is_null()).then_some(sk)
}

/// What the settings of the pod with this cookie take from capture.
pub(crate) struct PodSkips(pub(crate) u64);

impl Skips for PodSkips {
    #[inline(always)]
    fn skips_port(&self, direction: Direction, port: Port) -> bool {
        let key = Key::new(SkipPort::FULL, SkipPort::new(self.0, direction, port));
        SKIP_PORTS.get(&key).is_some()
    }

    #[inline(always)]
    fn net(&self, direction: Direction, addr: &Addr) -> u32 {
        let key = Key::new(SkipNet::FULL, SkipNet::new(self.0, direction, *addr));
        SKIP_NETS.get(&key).map_or(NET_UNKNOWN, |meaning| *meaning)
    }
}
