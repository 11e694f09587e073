//! Where objects come from: a folder of manifests.

mod dir;
mod kinds;
mod parse;

pub use dir::{Change, Dir, Scanned, run};
pub(crate) use parse::is_dns_subdomain;
