//! Pods of this node: who is to be meshed, who is, and how one becomes the other.
//!
//! ```text
//! controller ─▶ desired ─┐
//! CNI ADD, DEL ─▶ requests ─▶ converge ─▶ enrol ─▶ inside (netns, rules, proof), datapath (kernel)
//! every few seconds ─▶ reconcile ─┘   └─▶ hub (agents are told), record (disk)
//! ```
//! `enrol` holds the order of things, blocking and without state; `table` holds the state, one lock
//! per pod; `converge` decides what is to be done. After a restart, `adopt` fills the table.

mod adopt;
mod converge;
mod cut;
pub mod datapath;
pub mod desired;
pub mod enrol;
#[cfg(test)]
mod fake;
pub mod inside;
mod leave;
pub mod legacy;
pub mod netns;
pub mod proof;
mod reconcile;
pub mod record;
mod requests;
pub mod rules;
pub mod sockets;
pub mod status;
mod table;
#[cfg(test)]
mod tests;
pub mod view;

pub use requests::{Announcement, Lending, RequestError};
pub use table::{Config, Parts, Pods};
