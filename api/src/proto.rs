//! Generated messages and services, one module per package.
#![expect(
    missing_docs,
    unused_qualifications,
    reason = "generated; the protos carry the docs"
)]
#![expect(
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    clippy::too_many_lines,
    reason = "generated"
)]

/// What the controller tells a node.
pub mod node {
    tonic::include_proto!("weft.node.v1");
}

/// How weft-node lends sockets to weft-agent.
pub mod lend {
    tonic::include_proto!("weft.lend.v1");
}
