//! Requests and responses of one set of labels.

use std::time::Duration;

use super::{Counter, cells::Cells, histogram::Histogram};

/// Whether a response counts as a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Classification {
    /// It does.
    Success,
    /// It does not.
    Failure,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Status code, if there was a response.
    pub status: Option<u16>,
    /// Success or failure.
    pub class: Classification,
    /// gRPC status, if the request was gRPC.
    pub grpc_status: Option<u16>,
    /// Why it failed, from a closed set: `timeout`, `h2(PROTOCOL_ERROR)`, `unclassified`, …
    pub error: Option<&'static str>,
    /// From the request's headers to the first data of the response, or its end.
    pub latency: Duration,
}

/// Counters of one set of labels. Counting never waits.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    pub(super) requests: Counter,
    pub(super) responses: Cells<ResponseKey, Counter, 128>,
    pub(super) latencies: Cells<Option<u16>, Histogram, 64>,
}

/// What tells responses of one set of labels apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ResponseKey {
    pub(super) status: Option<u16>,
    pub(super) failure: bool,
    pub(super) grpc_status: Option<u16>,
    pub(super) error: Option<&'static str>,
}

impl HttpMetrics {
    /// Counts a request whose headers have come.
    pub fn request(&self) {
        self.requests.increment();
    }

    /// Counts the end of a request.
    pub fn response(&self, outcome: &Outcome) {
        let key = ResponseKey {
            status: outcome.status,
            failure: outcome.class == Classification::Failure,
            grpc_status: outcome.grpc_status,
            error: outcome.error,
        };
        // A peer that makes up more status codes than there are cells is not counted further.
        if let Some(responses) = self.responses.get(key) {
            responses.increment();
        }
        if let Some(latency) = self.latencies.get(outcome.status) {
            latency.observe(outcome.latency);
        }
    }
}
