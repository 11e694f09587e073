//! Weft's privileged node daemon.

pub mod kernel;
