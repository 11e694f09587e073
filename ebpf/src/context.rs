//! Reads fields of the kernel's structures with one load each.
//!
//! The verifier knows such a structure by its own address and a constant offset. LLVM likes to keep
//! an address in the middle and to merge loads; the verifier then refuses the program
//! ("dereference of modified ctx ptr"). Loads that are written out cannot be changed.

macro_rules! loads {
    ($(#[$doc:meta])* $name:ident, $into:ty, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The structure has a field of this size at the offset.
        #[inline(always)]
        pub(crate) unsafe fn $name<const OFFSET: usize, T>(from: *mut T) -> $into {
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                // SAFETY: the caller's promise; the instruction only reads.
                unsafe {
                    core::arch::asm!(
                        $instruction,
                        value = lateout(reg) value,
                        from = in(reg) from,
                        offset = const OFFSET,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                value as $into
            }
            #[cfg(not(target_arch = "bpf"))]
            {
                // SAFETY: the caller's promise.
                unsafe { from.byte_add(OFFSET).cast::<$into>().read_unaligned() }
            }
        }
    };
}
loads!(
    /// Loads a word.
    load_word, u32, "{value} = *(u32 *)({from} + {offset})"
);
loads!(
    /// Loads an address, or anything else of eight bytes.
    load_long, u64, "{value} = *(u64 *)({from} + {offset})"
);

/// Reads a word of a structure of the given type: a field, or an element of an array.
macro_rules! word {
    ($from:expr, $of:ty, $field:ident $(, $index:literal)?) => {{
        let from: *mut $of = $from;
        // SAFETY: the field is there, and the verifier checks that it may be read.
        unsafe {
            $crate::context::load_word::<
                { core::mem::offset_of!($of, $field) $(+ 4 * $index)? },
                $of,
            >(from)
        }
    }};
}

/// Reads the socket in a union of a structure of the given type; may be null.
macro_rules! socket {
    ($from:expr, $of:ty, $field:ident) => {{
        let from: *mut $of = $from;
        // SAFETY: the field is there, and the verifier checks that it may be read.
        let socket = unsafe {
            $crate::context::load_long::<{ core::mem::offset_of!($of, $field) }, $of>(from)
        };
        socket as *mut aya_ebpf::bindings::bpf_sock
    }};
}

pub(crate) use socket;
pub(crate) use word;
