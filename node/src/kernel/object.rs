//! The eBPF object that is built into this binary: the one place that names it.

/// Bytes of the object, aligned as an ELF file must be; none when it was built without.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-ebpf"));

/// Whether this binary holds the eBPF programs. Without them it can only explain itself.
pub const fn is_built_in() -> bool {
    !OBJECT.is_empty()
}
