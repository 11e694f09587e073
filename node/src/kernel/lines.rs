//! Prints what kernel programs of `cargo xtask build-ebpf --log` write about their decisions.
//!
//! All copies of all programs write to one ring buffer, which is pinned beside the maps. Its lines
//! go to the process log with the target `weft_ebpf`.

use std::{future, io};

use aya_log::{EbpfLogger, Error};
use log::Log;
use tokio::io::unix::AsyncFd;

use super::{Kernel, KernelError, sys};

/// Name of the ring buffer that aya-log's macros make.
pub(super) const MAP: &str = "AYA_LOGS";

/// The lines that kernel programs write.
pub struct Lines {
    logger: Option<AsyncFd<EbpfLogger<&'static dyn Log>>>,
}

impl Kernel {
    /// Opens what the programs write, for one reader. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the ring buffer cannot be opened.
    pub fn lines(&self) -> Result<Lines, KernelError> {
        let failed = |source| KernelError::Socket {
            action: "open",
            map: MAP,
            source,
        };
        let Some(program) = self.any_program() else {
            return Ok(Lines { logger: None });
        };
        let id = sys::program_id(program).map_err(failed)?;
        let logger = match EbpfLogger::init_from_id(id) {
            Ok(logger) => logger,
            Err(Error::MapNotFound) => {
                tracing::warn!("kernel programs write no lines: `cargo xtask build-ebpf --log`");
                return Ok(Lines { logger: None });
            }
            Err(error) => return Err(failed(io::Error::other(error))),
        };
        // SAFETY: the logger owns its file descriptor, keeps it for as long as it lives and does
        // not change it; it lives in the `AsyncFd`.
        let logger = unsafe { AsyncFd::register(logger) }.map_err(|error| failed(error.into()))?;
        Ok(Lines {
            logger: Some(logger),
        })
    }
}

impl Lines {
    /// Prints lines as they come; ends only when the ring buffer cannot be waited for.
    ///
    /// # Errors
    /// When the ring buffer cannot be waited for.
    pub async fn print(&mut self) -> io::Result<()> {
        let Some(logger) = &mut self.logger else {
            return future::pending().await;
        };
        loop {
            logger.get_mut().flush();
            logger.readable_mut().await?.clear_ready();
        }
    }
}
