//! The kernel side of a node: loads, pins and feeds Weft's eBPF programs, and says what is wrong.
//!
//! [`Kernel`] is the only way in. Programs, maps and links are pinned below
//! `<bpffs>/v<ABI>/`, so they outlive this process; opening adopts what is there and swaps programs
//! that have changed without a gap. All calls are synchronous, short system calls, safe from any
//! thread; those that name an interface must be made from a thread inside the pod's network
//! namespace. Nothing here decides which pods are meshed, enters namespaces or makes sockets.

mod config;
mod error;
mod events;
#[cfg(feature = "kernel-log")]
mod lines;
mod links;
mod loader;
mod maps;
mod mount;
pub mod object;
mod pods;
pub mod probe;
mod sys;
mod verify;

pub use config::{Guard, KernelConfig, ListenerSlot, PodKernel, Skips};
pub use error::KernelError;
pub use events::{Events, GuardEvent};
#[cfg(feature = "kernel-log")]
pub use lines::Lines;
pub use loader::{Kernel, cleanup};
pub use mount::cgroup2_mount;
pub use pods::KnownPod;
pub use verify::{Expected, Fault};
pub use weft_common::{MAX_PODS, Reason, Settings};
