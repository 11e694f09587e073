//! stub
/// Why the kernel side could not do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// stub
    #[error("stub")]
    Stub,
}
