//! The controller's own certificate, from its own issuer.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rcgen::KeyPair;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use weft_runtime::logging::report;

use super::{Authority, Ca, CaError, Validity};

/// A certificate with its key.
#[derive(Debug)]
pub struct ServerCertificate {
    certified: Arc<CertifiedKey>,
    not_after: SystemTime,
}

/// The certificate in use, for handshakes.
#[derive(Debug, Default)]
struct Current(ArcSwapOption<CertifiedKey>);

/// Tried again so soon when no certificate can be issued.
const RETRY: Duration = Duration::from_secs(10);

impl ServerCertificate {
    pub(super) fn issue(
        authority: &Authority,
        names: &[String],
        validity: Validity,
    ) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let issued = authority.sign(names, None, &key, validity, SystemTime::now())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|_error| rcgen::Error::CouldNotParseKeyPair)?;
        let chain = [issued.certificate].into_iter().chain(issued.chain);
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(chain.collect(), key)),
            not_after: issued.not_after,
        })
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Makes the TLS configuration of the listeners, and the task that keeps its certificate new.
///
/// # Errors
/// When no certificate can be issued.
pub fn server_config(
    ca: &Arc<Ca>,
    names: Vec<String>,
) -> Result<
    (
        Arc<ServerConfig>,
        impl Future<Output = anyhow::Result<()>> + Send + 'static + use<>,
    ),
    anyhow::Error,
> {
    let current = Arc::new(Current::default());
    let first = ca.server_certificate(&names)?;
    current.0.store(Some(Arc::clone(&first.certified)));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let ca = Arc::clone(ca);
    let renew = async move {
        renew(&ca, &names, &current, first.not_after).await;
        Ok(())
    };
    Ok((Arc::new(config), renew))
}

/// Runs a renewal until stopped.
///
/// # Errors
/// Those of the renewal.
pub async fn run(
    renewal: impl Future<Output = anyhow::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    stop.run_until_cancelled(renewal).await.unwrap_or(Ok(()))
}

async fn renew(ca: &Ca, names: &[String], current: &Current, mut not_after: SystemTime) {
    let mut generation = ca.watch_generation();
    loop {
        let left = not_after.duration_since(SystemTime::now());
        let wait = left.unwrap_or_default().mul_f64(0.7).max(RETRY);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = generation.changed() => {}
        }
        match ca.server_certificate(names) {
            Ok(next) => {
                current.0.store(Some(next.certified));
                not_after = next.not_after;
                info!("server certificate renewed");
            }
            Err(error) => {
                not_after = SystemTime::now();
                error!(error = %report(&error), "server certificate not renewed");
            }
        }
    }
}
