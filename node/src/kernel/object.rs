//! The eBPF object that is built into this binary: the one place that names it.
//!
//! Steering programs are loaded once per pod, with the pod's numbers as constants. They are
//! written into a copy of the object before that is loaded: aya could do so itself, but only with a
//! new loader each time, which reads all type information of the kernel and so takes six times as
//! long.

use std::path::Path;

use aya::{Ebpf, EbpfLoader};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use parking_lot::Mutex;
use weft_common::names;

use super::KernelError;
#[cfg(feature = "kernel-log")]
use super::lines;

/// Bytes of the object, aligned as an ELF file must be; none when it was built without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-ebpf"));

/// Whether this binary holds the eBPF programs. Without them it can only explain itself.
pub const fn is_built_in() -> bool {
    !OBJECT.is_empty()
}

/// How large the object is, in bytes.
pub(super) const fn size() -> usize {
    OBJECT.len()
}

/// The object, ready to be loaded for one pod after the other.
pub(super) struct Template {
    loader: Mutex<EbpfLoader<'static>>,
    cookie_at: usize,
    slot_at: usize,
}

impl Template {
    /// Prepares the object. Its maps are opened or made at their pins below `pins`; without that,
    /// they are made anew each time and pinned nowhere.
    pub(super) fn new(pins: Option<&Path>) -> Result<Self, KernelError> {
        if !is_built_in() {
            return Err(KernelError::NoDatapath);
        }
        let mut loader = EbpfLoader::new();
        // The programs use no structure of the kernel's inside.
        loader.btf(None);
        if let Some(pins) = pins {
            for map in names::MAPS {
                loader.map_pin_path(map, pins.join(map));
            }
            #[cfg(feature = "kernel-log")]
            loader.map_pin_path(lines::MAP, pins.join(lines::MAP));
        }
        let (cookie_at, slot_at) = (place(names::POD_COOKIE)?, place(names::POD_SLOT)?);
        Ok(Self {
            loader: Mutex::new(loader),
            cookie_at,
            slot_at,
        })
    }

    /// Reads the object and makes or opens its maps; no program is loaded yet.
    pub(super) fn load(&self, (cookie, slot): (u64, u32)) -> Result<Ebpf, KernelError> {
        let mut object = OBJECT.to_vec();
        write(&mut object, self.cookie_at, &cookie.to_ne_bytes());
        write(&mut object, self.slot_at, &slot.to_ne_bytes());
        let loaded = self.loader.lock().load(&object);
        loaded.map_err(|error| KernelError::Object(Box::new(error)))
    }
}

/// Where the constant lies in the object.
fn place(name: &'static str) -> Result<usize, KernelError> {
    let found = || {
        let file = object::File::parse(OBJECT).ok()?;
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        let (start, _) = section.file_range()?;
        let at = usize::try_from(start + symbol.address() - section.address()).ok()?;
        let end = at.checked_add(usize::try_from(symbol.size()).ok()?)?;
        (end <= OBJECT.len()).then_some(at)
    };
    found().ok_or_else(|| KernelError::Invalid {
        what: "eBPF object",
        value: name.to_owned(),
    })
}

fn write(object: &mut [u8], at: usize, bytes: &[u8]) {
    object[at..at + bytes.len()].copy_from_slice(bytes);
}
