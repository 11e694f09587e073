//! Certificates: trust anchors, issuer, leaves.
//!
//! ```text
//! files.rs      files -> Authority, or which file is wrong      state.rs   makes the first ones
//! authority.rs  issues                                          csr.rs     what may be asked for
//! server.rs     the controller's own certificate
//! ```
//! [`Ca`] holds the authority in use. Files are compared now and then and on every change; a set
//! that is wrong is reported and the last good one stays.

mod authority;
mod csr;
mod files;
mod server;
mod state;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use notify::RecursiveMode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use weft_api::model::Identity;
use weft_runtime::logging::report;

use crate::fswatch::{FsWatch, Timing};

pub use authority::{Authority, Issued, Validity};
pub use csr::{Csr, CsrError};
pub use files::{CaError, CaFiles};
pub use server::{ServerCertificate, run as run_renewal, server_config};

/// The authority in use.
pub struct Ca {
    files: CaFiles,
    // Whether the files are ours to make and to renew.
    is_own: bool,
    validity: Validity,
    authority: ArcSwap<Authority>,
    bundle: watch::Sender<Arc<str>>,
    generation: watch::Sender<u64>,
}

impl Ca {
    /// Uses files that somebody else keeps.
    ///
    /// # Errors
    /// Names the file that is wrong.
    pub fn with_files(files: CaFiles, validity: Validity) -> Result<Self, CaError> {
        let authority = files.load(SystemTime::now())?;
        Ok(Self::new(files, false, validity, authority))
    }

    /// Uses the files of a state folder, and makes those that are missing.
    ///
    /// # Errors
    /// Names the file that is wrong or cannot be written.
    pub fn with_state(
        folder: &Path,
        trust_domain: &str,
        validity: Validity,
    ) -> Result<Self, CaError> {
        let files = state::prepare(folder, trust_domain)?;
        let authority = files.load(SystemTime::now())?;
        Ok(Self::new(files, true, validity, authority))
    }

    fn new(files: CaFiles, is_own: bool, validity: Validity, authority: Authority) -> Self {
        Self {
            files,
            is_own,
            validity,
            bundle: watch::Sender::new(Arc::clone(authority.bundle())),
            generation: watch::Sender::new(0),
            authority: ArcSwap::from_pointee(authority),
        }
    }

    /// The trust bundle as PEM: the present one and every replacement.
    pub fn watch_bundle(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// Changes when another authority is in use.
    pub fn watch_generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// When the issuer's certificate or one above it expires.
    pub fn expires(&self) -> SystemTime {
        self.authority.load().not_after()
    }

    /// Whether certificates can be issued now.
    ///
    /// # Errors
    /// When the issuer has expired or is not valid yet.
    pub fn check(&self) -> Result<(), CaError> {
        self.authority.load().check(SystemTime::now())
    }

    /// Issues a certificate for the key of a checked request.
    ///
    /// # Errors
    /// When the issuer has expired, or signing fails.
    pub fn issue(&self, identity: &Identity, csr: &Csr) -> Result<Issued, CaError> {
        let authority = self.authority.load();
        authority.issue(identity, csr, self.validity, SystemTime::now())
    }

    /// Makes a certificate for the controller itself.
    ///
    /// # Errors
    /// When the issuer has expired, or signing fails.
    pub fn server_certificate(&self, names: &[String]) -> Result<ServerCertificate, CaError> {
        ServerCertificate::issue(&self.authority.load(), names, self.validity)
    }

    /// Follows the files until stopped.
    ///
    /// # Errors
    /// None that end it: wrong files are reported.
    pub async fn run(
        self: Arc<Self>,
        timing: Timing,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut watch = FsWatch::new(&self.files.folders(), RecursiveMode::NonRecursive, timing);
        let mut last_error = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = watch.next() => {}
            }
            match self.refresh() {
                Ok(()) => last_error = None,
                Err(error) => {
                    let text = report(&error).to_string();
                    if last_error.as_ref() != Some(&text) {
                        error!(error = %text, "certificates cannot be used; the last good ones stay");
                    }
                    last_error = Some(text);
                }
            }
        }
    }

    /// Reads the files again and uses them if they are right and different.
    fn refresh(&self) -> Result<(), CaError> {
        let now = SystemTime::now();
        if self.is_own {
            state::renew_issuer(&self.files, now)?;
        }
        let next = self.files.load(now)?;
        let current = self.authority.load_full();
        if next.is_same(&current) {
            return Ok(());
        }
        let bundle = Arc::clone(next.bundle());
        self.authority.store(Arc::new(next));
        self.generation.send_modify(|generation| *generation += 1);
        let is_new_bundle = self.bundle.send_if_modified(|current| {
            let is_new = *current != bundle;
            *current = bundle;
            is_new
        });
        info!(
            anchors = %self.files.anchors.display(),
            issuer = %self.files.issuer.display(),
            is_new_bundle,
            "certificates replaced"
        );
        Ok(())
    }
}

impl CaFiles {
    fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<_> = [&self.anchors, &self.issuer, &self.key]
            .into_iter()
            .filter_map(|file| file.parent().map(Path::to_path_buf))
            .map(|folder| match folder.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => folder,
            })
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

/// How far before its end an issuer of our own is renewed.
const RENEW_ISSUER_BEFORE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
