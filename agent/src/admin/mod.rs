//! What the agent shows: its own page on the node, and one page on each pod's address.
//!
//! Served by the control runtime, so that a scrape never delays a byte of the pods' traffic.

mod node;
mod pod;
#[cfg(test)]
mod tests;

pub use self::{
    node::{Describe, node_admin},
    pod::{PodAdmin, serve_pod},
};
