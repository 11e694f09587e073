//! Counts what became of messages, and logs a bad one once.

use tracing::warn;

use super::convert::Invalid;
use crate::metrics::{AgentMetrics, Stream, Update, UpdateLabels};

/// Counts messages of one stream; a complaint that repeats is logged once.
pub(super) struct Reporter<'key> {
    metrics: AgentMetrics,
    stream: Stream,
    /// What the stream is about, for the log.
    subject: &'key str,
    complaint: Option<Invalid>,
}

impl<'key> Reporter<'key> {
    pub(super) fn new(metrics: &AgentMetrics, stream: Stream, subject: &'key str) -> Self {
        Self {
            metrics: metrics.clone(),
            stream,
            subject,
            complaint: None,
        }
    }

    /// The message is in use.
    pub(super) fn applied(&mut self) {
        self.complaint = None;
        self.count(Update::Applied);
    }

    /// The message, or a part of it, is not used; what was there stays.
    pub(super) fn refused(&mut self, error: Invalid) {
        self.count(Update::Refused);
        if self.complaint.as_ref() != Some(&error) {
            warn!(stream = self.stream.label(), subject = self.subject, %error, "message of the controller refused");
            self.complaint = Some(error);
        }
    }

    fn count(&self, result: Update) {
        let stream = self.stream;
        let labels = UpdateLabels { stream, result };
        self.metrics.updates.get_or_create(&labels).inc();
    }
}
