//! Generated from `proto/vote.proto`.
#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    clippy::too_many_lines,
    unreachable_pub,
    unused_qualifications,
    reason = "generated; no program uses all of it"
)]

tonic::include_proto!("weft.vote.v1");
