//! Where objects come from: a folder of manifests.

mod dir;
mod kinds;
mod parse;
#[cfg(test)]
mod tests;

pub use dir::{Change, Dir, Scanned, run};
pub(crate) use parse::is_dns_subdomain;

/// Objects of a text that is known to be right.
#[cfg(test)]
pub(crate) fn objects(yaml: &str) -> Vec<(crate::index::ObjectKey, crate::index::Object)> {
    let parsed = parse::parse(yaml.as_bytes());
    assert_eq!(parsed.findings, [], "{yaml}");
    parsed.objects
}
