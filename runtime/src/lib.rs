//! What Weft's daemons share: supervised tasks, drain, readiness, admin server, logging.
//!
//! A daemon's `main` reads its settings, calls [`logging::init`], builds everything in its `app`
//! module and hands the long-running parts to [`Tasks`]. Nothing here knows what a mesh is.
#![forbid(unsafe_code)]

pub mod admin;
pub mod backoff;
pub mod logging;
pub mod ready;
pub mod signal;
mod tasks;
pub mod tls;

pub use tasks::{TaskEnded, Tasks};
