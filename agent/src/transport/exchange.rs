//! One request and its response, as they are counted.
//!
//! Latency runs to the first frame of the response, as Linkerd measures it; the same moment ends
//! the endpoint's lease. The response is counted when it has ended, because a gRPC response says
//! only then how it went.

use std::{error::Error as _, sync::Arc, time::Duration};

use http::{HeaderMap, Version};
use tokio::time::Instant;

use crate::{
    lb::{Lease, Time},
    metrics::{Classification, HttpMetrics, Outcome},
    policy::classify::{classify_grpc, classify_http, grpc_status},
};

/// An exchange that is going on.
#[derive(Debug)]
pub struct Exchange {
    metrics: Arc<HttpMetrics>,
    began: Instant,
    lease: Option<(Lease, Time)>,
    latency: Option<Duration>,
    error: Option<&'static str>,
    status: Option<u16>,
    grpc_status: Option<u16>,
    is_grpc: bool,
    is_h2: bool,
}

impl Exchange {
    /// Counts a request that began then.
    pub fn begin(metrics: &Arc<HttpMetrics>, began: Instant, is_grpc: bool) -> Self {
        metrics.request();
        Self {
            metrics: Arc::clone(metrics),
            began,
            lease: None,
            latency: None,
            error: None,
            status: None,
            grpc_status: None,
            is_grpc,
            is_h2: false,
        }
    }

    /// Holds an endpoint's lease until the first frame of the response. `began` is when the
    /// request did, by the lease's clock.
    #[must_use]
    pub fn with_lease(mut self, lease: Lease, began: Time) -> Self {
        self.lease = Some((lease, began));
        self
    }

    /// Notes the head of the response.
    pub fn head(&mut self, status: u16, version: Version, headers: &HeaderMap) {
        self.status = Some(status);
        self.is_h2 = version >= Version::HTTP_2;
        if self.is_grpc {
            self.grpc_status = grpc_status(headers);
        }
    }

    /// Notes that there is no response, and why.
    pub fn fail_unanswered(mut self, error: &'static str) {
        self.error = Some(error);
        // An endpoint that fails fast would look like a fast one.
        self.lease = None;
        self.end();
    }

    pub(super) fn frame(&mut self, trailers: Option<&HeaderMap>) {
        self.first_frame();
        if let Some(trailers) = trailers.filter(|_| self.is_grpc) {
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        }
    }

    pub(super) fn fail(&mut self, error: &hyper::Error) {
        self.error = Some(error_label(error));
    }

    pub(super) const fn is_grpc_over_h2(&self) -> bool {
        self.is_grpc && self.is_h2
    }

    /// Counts the response.
    pub(super) fn end(mut self) {
        let latency = self.first_frame();
        let (mut class, grpc_status) = match self.status {
            Some(_) if self.is_grpc => {
                let (class, status) = classify_grpc(self.grpc_status);
                (class, Some(status))
            }
            Some(status) => (classify_http(status), None),
            None => (Classification::Failure, None),
        };
        if self.error.is_some() {
            class = Classification::Failure;
        }
        self.metrics.response(&Outcome {
            status: self.status,
            class,
            grpc_status,
            error: self.error,
            latency,
        });
    }

    fn first_frame(&mut self) -> Duration {
        if let Some(latency) = self.latency {
            return latency;
        }
        let latency = self.began.elapsed();
        self.latency = Some(latency);
        if let Some((lease, began)) = self.lease.take() {
            lease.finish(began + latency);
        }
        latency
    }
}

/// The error as `response_total` names it.
pub fn error_label(error: &hyper::Error) -> &'static str {
    match reset_reason(error) {
        Some(reason) => reason_label(reason),
        None if error.is_timeout() => "timeout",
        None => "unclassified",
    }
}

/// How the peer has reset the HTTP/2 stream, if that is what happened.
pub fn reset_reason(error: &hyper::Error) -> Option<h2::Reason> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause
            .downcast_ref::<h2::Error>()
            .filter(|error| error.is_reset())
        {
            return error.reason();
        }
        source = cause.source();
    }
    None
}

fn reason_label(reason: h2::Reason) -> &'static str {
    match reason {
        h2::Reason::NO_ERROR => "h2(NO_ERROR)",
        h2::Reason::PROTOCOL_ERROR => "h2(PROTOCOL_ERROR)",
        h2::Reason::INTERNAL_ERROR => "h2(INTERNAL_ERROR)",
        h2::Reason::FLOW_CONTROL_ERROR => "h2(FLOW_CONTROL_ERROR)",
        h2::Reason::SETTINGS_TIMEOUT => "h2(SETTINGS_TIMEOUT)",
        h2::Reason::STREAM_CLOSED => "h2(STREAM_CLOSED)",
        h2::Reason::FRAME_SIZE_ERROR => "h2(FRAME_SIZE_ERROR)",
        h2::Reason::REFUSED_STREAM => "h2(REFUSED_STREAM)",
        h2::Reason::CANCEL => "h2(CANCEL)",
        h2::Reason::COMPRESSION_ERROR => "h2(COMPRESSION_ERROR)",
        h2::Reason::CONNECT_ERROR => "h2(CONNECT_ERROR)",
        h2::Reason::ENHANCE_YOUR_CALM => "h2(ENHANCE_YOUR_CALM)",
        h2::Reason::INADEQUATE_SECURITY => "h2(INADEQUATE_SECURITY)",
        h2::Reason::HTTP_1_1_REQUIRED => "h2(HTTP_1_1_REQUIRED)",
        _ => "h2(UNKNOWN)",
    }
}
