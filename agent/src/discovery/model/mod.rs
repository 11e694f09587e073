//! What discovery knows, as plain data: targets of outbound connections, endpoints, inbound servers.
//!
//! Pure: no clock, no client, no task. Made in `convert`, swapped whole by the watches, read by
//! whoever serves a connection. Nothing here is ever changed in place, but for an endpoint's load.

mod endpoint;
mod inbound;
mod meta;
mod outbound;

pub use endpoint::{DstLabels, Endpoint, EndpointSet, Endpoints, Hint};
pub use inbound::{
    Authentication, Authorization, InboundRoute, InboundServer, MethodAndPath, NetworkMatch,
    PathMatch,
};
pub use meta::Meta;
pub use outbound::{Destination, OutboundTarget};

/// How bytes of a connection are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Unknown: look at the first bytes.
    Detect,
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP/2 with gRPC in it.
    Grpc,
    /// Bytes. The connection may still be carried in mesh TLS.
    Opaque,
    /// TLS of the application's own, passed on as bytes.
    Tls,
}
