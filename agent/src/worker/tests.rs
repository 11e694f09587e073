//! The request path over real sockets: client → outbound → inbound → application, in one process.
//!
//! Endpoints have the address 0.0.0.0, which reaches this machine and is nobody's own: traffic to
//! it is treated as traffic to another pod. Listeners say themselves what the original
//! destination was.

mod drain;
mod http1;
mod http2;
mod policy;
mod rig;
mod tcp;
mod trouble;
