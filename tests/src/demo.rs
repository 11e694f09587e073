//! The demo: the mesh with real programs on two nodes.
//!
//! [`cast`] builds it, [`summary`] shows what the agents count, [`checks`] and [`faults`] are the
//! script of `weft-demo --once`.

pub mod cast;
pub mod checks;
pub mod faults;
pub mod summary;
