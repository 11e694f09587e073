//! Certificates and keys of the node's workloads.
//!
//! A [`Store`] keeps one certificate per identity for as long as somebody holds a [`Handle`] to
//! it: it makes a fresh key, has it certified, installs what came back after checking it, and
//! does the same again at 70 % of the certificate's life. Keys exist only in this process's memory.
//! When the trust bundle changes, every workload's configurations are made anew.
//!
//! Handshakes load an `Arc` and never wait for any of this; a certificate that cannot be renewed
//! stays in use.

mod ca_client;
mod entry;
mod request;
mod stats;
mod store;
mod token;
mod verify;

pub use ca_client::{CaClient, CertifyError};
pub use entry::{Handle, NotCertified};
pub use stats::{IdentityStats, Stats};
pub use store::{Status, Store};
pub use token::{TokenError, TokenFile};
pub use verify::Refused;

pub use crate::tls::{Credentials, InvalidBundle, TrustBundle};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
