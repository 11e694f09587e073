//! Weft's node proxy: mutual TLS, HTTP, balancing and metrics for every meshed pod of a node.
//!
//! [`app`] builds everything; [`worker`] accepts connections on data threads and gives them to
//! [`outbound`] or [`inbound`]; [`discovery`] and [`identity`] feed them from the control runtime.
//! A module uses only those before it in this order (discovery's `model` is plain data and may be
//! used by all):
//!
//! ```text
//! route, policy, lb, workload | identity, tls, sockets | transport | discovery
//!     | outbound, inbound | admin | app          leaves for all: metrics, respond
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod config;
pub mod context;
pub mod discovery;
pub mod identity;
pub mod inbound;
pub mod lb;
pub mod metrics;
pub mod outbound;
pub mod policy;
pub mod respond;
pub mod route;
pub mod sockets;
pub mod tls;
pub mod transport;
pub mod worker;
pub mod workload;
