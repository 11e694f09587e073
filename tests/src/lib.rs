//! Worlds of network namespaces in which the real daemons and real programs are tested.
//!
//! ```text
//! World ── Node (namespace, bridge, weft-node, weft-agent) ── Pod (namespace, cgroup, processes)
//!   │                                                          │
//!   └─ Manifests ─► weft-controller                            └─ Cni: what a kubelet would call
//! ```
//!
//! Everything of a world is named after it, so that what a killed run left behind is found and
//! removed at the next start ([`leftovers`]). Blocking on purpose: a test reads from top to bottom
//! and no runtime is between it and the kernel. Nothing here waits for a time to pass: see
//! [`eventually`](mod@eventually).

pub mod address;
pub mod apps;
pub mod ca;
pub mod capture;
pub mod cgroup;
pub mod cni;
pub mod demo;
pub mod eventually;
pub mod fixture;
pub mod hammer;
pub mod http;
pub mod leftovers;
pub mod manifest;
pub mod mesh_tls;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod pcap;
pub mod pod;
pub mod process;
pub mod world;

pub use eventually::{eventually, eventually_within};
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use world::{World, WorldBuilder};

/// Name of the function that uses the macro, with its modules: what worlds of tests are named after.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        name.strip_suffix("::here").unwrap_or(name)
    }};
}
