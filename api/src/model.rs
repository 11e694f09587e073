//! Types that cannot be wrong, made from what arrives over the wire.
//!
//! Conversions live beside the type they produce (`TryFrom<proto>`); an error names the field.

mod identity;
mod pod;
mod ports;

pub use identity::{Identity, InvalidIdentity};
pub use pod::{Guard, InvalidPod, Mesh, Pod, PodUid, Settings};
pub use ports::{InvalidPorts, PortSet};
