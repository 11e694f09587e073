//! The controller over real gRPC: files go in, streams come out.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod world;

mod discovery;
mod identity;
mod manifests;
mod nodes;
