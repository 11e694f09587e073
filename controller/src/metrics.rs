//! The controller's own metrics.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tonic::{Code, Status};
use weft_runtime::admin;

use crate::{
    ca::Ca,
    problems::{Problems, Severity},
    serve::Hub,
};

/// Counters that services write, and gauges that are read when somebody asks.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    streams: Family<MethodLabels, Gauge>,
    issued: Counter,
    refused: Family<ReasonLabels, Counter>,
    problems: Family<SeverityLabels, Gauge>,
    objects: Family<KindLabels, Gauge>,
    issuer_expires: Gauge,
}

/// Counts a stream as open until it is dropped.
#[derive(Debug)]
pub struct OpenStream(Gauge);

/// Writes the metrics as text.
pub struct Scrape {
    registry: Registry,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SeverityLabels {
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl Metrics {
    /// Counts a request by its result, and passes the result on.
    ///
    /// # Errors
    /// The result's.
    pub fn counted<T>(&self, method: &'static str, result: Result<T, Status>) -> Result<T, Status> {
        let code = match &result {
            Ok(_) => code_label(Code::Ok),
            Err(status) => code_label(status.code()),
        };
        let labels = RequestLabels { method, code };
        self.requests.get_or_create(&labels).inc();
        result
    }

    /// Counts a stream as open.
    pub fn open_stream(&self, method: &'static str) -> OpenStream {
        let gauge = self.streams.get_or_create(&MethodLabels { method }).clone();
        gauge.inc();
        OpenStream(gauge)
    }

    /// Counts a certificate.
    pub fn certificate_issued(&self) {
        self.issued.inc();
    }

    /// Counts a certificate that was not issued.
    pub fn certificate_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    fn update(&self, hub: &Hub, problems: &Problems, ca: &Ca) {
        for severity in [Severity::Error, Severity::Warning] {
            let labels = SeverityLabels {
                severity: severity.as_str(),
            };
            let count = problems.count(severity);
            self.problems.get_or_create(&labels).set(gauge(count));
        }
        let sizes = hub.sizes();
        for (kind, size) in [
            ("namespace", sizes.namespaces),
            ("service_account", sizes.service_accounts),
            ("pod", sizes.pods),
            ("meshed_pod", sizes.meshed_pods),
            ("service", sizes.services),
            ("endpoint_slice", sizes.slices),
        ] {
            let labels = KindLabels { kind };
            self.objects.get_or_create(&labels).set(gauge(size));
        }
        let end = ca
            .expires()
            .duration_since(std::time::SystemTime::UNIX_EPOCH);
        let end = end.unwrap_or_default().as_secs();
        self.issuer_expires
            .set(i64::try_from(end).unwrap_or(i64::MAX));
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Scrape {
    /// Registers the metrics.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let mut registry = Registry::with_prefix("weft");
        let m = &metrics;
        registry.register(
            "controller_requests",
            "gRPC requests by method and status code; of a stream, its start",
            m.requests.clone(),
        );
        registry.register(
            "controller_streams_open",
            "gRPC streams open now",
            m.streams.clone(),
        );
        registry.register(
            "certificates_issued",
            "Workload certificates issued",
            m.issued.clone(),
        );
        registry.register(
            "certificates_refused",
            "Workload certificates refused, by reason",
            m.refused.clone(),
        );
        registry.register(
            "manifest_problems",
            "Things wrong with the manifests now",
            m.problems.clone(),
        );
        registry.register(
            "index_objects",
            "Objects that the controller knows",
            m.objects.clone(),
        );
        registry.register(
            "issuer_expiration_timestamp_seconds",
            "When the issuer's chain of certificates ends",
            m.issuer_expires.clone(),
        );
        Self { registry, metrics }
    }

    /// Brings gauges up to date and writes everything.
    pub fn render(this: &Mutex<Self>, hub: &Hub, problems: &Problems, ca: &Ca) -> String {
        let this = this.lock();
        this.metrics.update(hub, problems, ca);
        admin::render(&this.registry)
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const fn code_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
