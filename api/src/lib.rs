//! Wire protocols of Weft and the validated model made from them.
//!
//! `proto` holds the generated messages, `model` the types that cannot be wrong: whoever reads a
//! message converts it once, at the rim, and the rest of the program sees only `model`.
//! Linkerd's protocols are not repeated here: see the crate `linkerd2-proxy-api`.
#![forbid(unsafe_code)]

pub mod client;
pub mod model;
pub mod proto;
