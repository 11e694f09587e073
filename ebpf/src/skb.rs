//! Packets of the kernel, read through helpers.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::bpf_skb_load_bytes_relative,
};
use weft_ebpf::packet::Packet;

/// A packet, read from its network header on, whatever lies below.
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Packet for Skb {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.read(offset, [0; N])
    }

    #[inline(always)]
    fn pair(&self, offset: u32) -> Option<[u8; 2]> {
        self.read(offset, [0; 2])
    }
}

impl Skb {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: u32, mut into: T) -> Option<T> {
        let to = (&raw mut into).cast();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the size of a header's part"
        )]
        let length = size_of::<T>() as u32;
        // SAFETY: `into` is as long as `length` says and any bytes are a value of it: the callers
        // above read arrays of numbers. The packet is the kernel's.
        let result = unsafe {
            bpf_skb_load_bytes_relative(self.0.cast(), offset, to, length, BPF_HDR_START_NET)
        };
        (result == 0).then_some(into)
    }
}
