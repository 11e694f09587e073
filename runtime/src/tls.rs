//! The one TLS provider of the process.

/// Makes aws-lc-rs the default provider of rustls. To be called once, first in `main`.
pub fn install_provider() {
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
}
