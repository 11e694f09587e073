//! Weft's control plane: destinations, policies, identities and what nodes need to know.
//!
//! ```text
//! source/dir     files -> objects      index/     plain structs, one file per kind
//! translate/     index -> protos       serve/     protos -> gRPC streams, latest value wins
//! ca/            keys -> certificates  app        wires, and nothing else does
//! ```
#![forbid(unsafe_code)]

pub mod app;
pub mod ca;
pub mod config;
pub mod fswatch;
pub mod index;
pub mod metrics;
pub mod problems;
pub mod serve;
pub mod source;
pub mod tokens;
pub mod translate;
