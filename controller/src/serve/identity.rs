//! Linkerd's identity API: certificates for workloads, asked for by their node.
//!
//! The token names a node. A node gets certificates for the ServiceAccounts of pods that run on it
//! and for nobody else: a stolen node is worth what runs there.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse, identity_server::Identity as IdentityApi,
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Request, Response, Status, async_trait};
use tracing::{info, warn};
use weft_api::model::Identity;
use weft_runtime::logging::report;

use super::Context;
use crate::ca::{Csr, CsrError, Issued};

pub(super) struct Service {
    context: Context,
    rates: Arc<Rates>,
}

/// A request that is not answered: label for metrics, and what the client is told.
struct Refusal {
    reason: &'static str,
    status: Status,
}

impl Refusal {
    const fn new(reason: &'static str, status: Status) -> Self {
        Self { reason, status }
    }
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self {
            context,
            rates: Arc::default(),
        }
    }

    /// The checks in the order of Linkerd's identity service, so that clients see the same codes.
    fn certify(&self, request: &CertifyRequest) -> Result<(Issued, Arc<str>), Refusal> {
        let invalid =
            |reason, message: String| Refusal::new(reason, Status::invalid_argument(message));
        if request.identity.is_empty() {
            return Err(invalid("malformed", "identity is missing".to_owned()));
        }
        let identity = match request.identity.parse() {
            Ok(Identity::Spiffe(_)) => Err("SPIFFE identities are not issued here".to_owned()),
            Ok(identity @ Identity::Dns(_)) => Ok(identity),
            Err(error) => Err(error.to_string()),
        };
        let identity: Identity = identity.map_err(|message| invalid("malformed", message))?;
        let token = std::str::from_utf8(&request.token)
            .unwrap_or_default()
            .trim();
        if token.is_empty() {
            return Err(invalid("malformed", "token is missing".to_owned()));
        }
        let csr = Csr::parse(&request.certificate_signing_request);
        let csr = csr.map_err(|error| match error == CsrError::Malformed {
            true => invalid("malformed", error.to_string()),
            false => csr_refused(&error),
        })?;
        let ca = &self.context.ca;
        ca.check().map_err(|error| {
            let message = format!("certificates cannot be issued: {}", report(&error));
            Refusal::new("issuer", Status::unavailable(message))
        })?;
        csr.check(&identity).map_err(|error| csr_refused(&error))?;
        let node = self.context.tokens.verify(token).map_err(|error| {
            Refusal::new("token", Status::failed_precondition(error.to_string()))
        })?;
        if !self.rates.allow(&node, Instant::now()) {
            let message = format!("node {node} asks for certificates too often");
            return Err(Refusal::new("rate", Status::resource_exhausted(message)));
        }
        let runs = self.context.hub.runs_on(identity.as_str(), &node);
        let runs = runs.map_err(|refused| Refusal::new("not_ready", refused.into()))?;
        if !runs {
            let message = format!("no pod with identity {identity} runs on node {node}");
            return Err(Refusal::new(
                "not_on_node",
                Status::permission_denied(message),
            ));
        }
        let issued = ca.issue(&identity, &csr).map_err(|error| {
            Refusal::new("issuer", Status::internal(report(&error).to_string()))
        })?;
        Ok((issued, node))
    }
}

#[async_trait]
impl IdentityApi for Service {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let request = request.get_ref();
        let metrics = &self.context.metrics;
        let result = match Self::certify(self, request) {
            Ok((issued, node)) => {
                metrics.certificate_issued();
                info!(
                    target: "audit",
                    identity = request.identity,
                    node = &*node,
                    serial = issued.serial,
                    not_after = %time::OffsetDateTime::from(issued.not_after),
                    "certificate issued"
                );
                Ok(Response::new(response(&issued)))
            }
            Err(refusal) => {
                metrics.certificate_refused(refusal.reason);
                // Anyone can be refused, as often as they like; the metric counts all of it.
                if self.rates.allow(&Arc::from(REFUSALS), Instant::now()) {
                    warn!(
                        target: "audit",
                        identity = printable(&request.identity),
                        reason = refusal.reason,
                        error = refusal.status.message(),
                        "certificate refused"
                    );
                }
                Err(refusal.status)
            }
        };
        metrics.counted("Identity.Certify", result)
    }
}

fn csr_refused(error: &CsrError) -> Refusal {
    Refusal::new("csr", Status::failed_precondition(error.to_string()))
}

fn response(issued: &Issued) -> CertifyResponse {
    let chain = issued.chain.iter();
    CertifyResponse {
        leaf_certificate: issued.certificate.to_vec(),
        intermediate_certificates: chain.map(|certificate| certificate.to_vec()).collect(),
        valid_until: Some(timestamp(issued.not_after)),
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

/// What a client sent, fit for a log line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// How often a node may ask: a bucket per node.
#[derive(Default)]
struct Rates(Mutex<HashMap<Arc<str>, Bucket>>);

struct Bucket {
    left: f64,
    filled: Instant,
}

/// A node that restarts asks for all its ServiceAccounts at once.
const BURST: f64 = 500.0;
const PER_SECOND: f64 = 20.0;
/// Bucket of log lines about refusals; no node has this name.
const REFUSALS: &str = "";

impl Rates {
    fn allow(&self, node: &Arc<str>, now: Instant) -> bool {
        let mut buckets = self.0.lock();
        let bucket = buckets.entry(Arc::clone(node)).or_insert(Bucket {
            left: BURST,
            filled: now,
        });
        let since: Duration = now.saturating_duration_since(bucket.filled);
        bucket.filled = now;
        bucket.left = since
            .as_secs_f64()
            .mul_add(PER_SECOND, bucket.left)
            .min(BURST);
        let is_allowed = bucket.left >= 1.0;
        if is_allowed {
            bucket.left -= 1.0;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_asks_too_often_is_refused_and_others_are_not() {
        let rates = Rates::default();
        let (noisy, quiet) = (Arc::from("n1"), Arc::from("n2"));
        let now = Instant::now();
        let allowed = (0..600).filter(|_| rates.allow(&noisy, now)).count();
        assert_eq!(allowed, 500);
        assert!(rates.allow(&quiet, now));
        assert!(rates.allow(&noisy, now + Duration::from_secs(1)));
    }
}
