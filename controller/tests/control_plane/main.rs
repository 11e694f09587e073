//! The controller over real gRPC: files go in, streams come out.
#![forbid(unsafe_code)]

mod world;

mod discovery;
mod identity;
mod manifests;
mod nodes;
