//! Weft's privileged node daemon: the only code of the mesh with capabilities.
//!
//! It loads and pins the kernel programs (`kernel`), brings pods into the mesh and out of it
//! (`pods`), lends their sockets to agents (`lend`), answers the container runtime (`cni`) and
//! follows the controller (`control`). It never reads a byte that comes from a pod or the network.

pub mod app;
pub mod cni;
pub mod config;
pub mod control;
pub mod kernel;
pub mod lend;
pub mod metrics;
pub mod pods;
pub mod show;
