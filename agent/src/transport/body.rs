//! The one body of responses: bytes from upstream, with what has to happen when they end.
//!
//! A struct and not a boxed trait object: a response then needs no allocation of its own. It ends
//! in one of three ways: to its end, with an error, or dropped by hyper (which does not ask for
//! the end of a body that has a known length, has trailers, or may have no bytes). Each way gives the
//! connection back if nothing of the response is left on it, and records the exchange once.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::{exchange::Exchange, pool::Loan};
use crate::policy::classify::GRPC_STATUS;

/// gRPC status of a response that broke off: unavailable.
const BROKE_OFF: HeaderValue = HeaderValue::from_static("14");

/// Body of a response.
#[derive(Debug)]
pub struct Body {
    inner: Option<Incoming>,
    loan: Option<Loan>,
    exchange: Option<Exchange>,
}

impl Body {
    /// A body without bytes.
    pub const fn empty() -> Self {
        Self {
            inner: None,
            loan: None,
            exchange: None,
        }
    }

    /// A body that is on a connection which can be used again afterwards.
    pub(super) const fn lent(inner: Incoming, loan: Loan) -> Self {
        Self {
            inner: Some(inner),
            loan: Some(loan),
            exchange: None,
        }
    }

    /// The body, with an exchange to record when it ends.
    #[must_use]
    pub fn with_exchange(mut self, exchange: Exchange) -> Self {
        self.exchange = Some(exchange);
        self
    }

    fn end_if_over(&mut self) {
        if self.inner.as_ref().is_none_or(HttpBody::is_end_stream) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(loan) = self.loan.take() {
            loan.give_back();
        }
        if let Some(exchange) = self.exchange.take() {
            exchange.end();
        }
    }

    fn fail(&mut self, error: &hyper::Error) -> Option<Frame<Bytes>> {
        self.loan = None;
        self.inner = None;
        let mut exchange = self.exchange.take()?;
        exchange.fail(error);
        // A gRPC client learns more from trailers than from a reset.
        let is_grpc = exchange.is_grpc_over_h2();
        exchange.end();
        is_grpc.then(|| {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(GRPC_STATUS, BROKE_OFF);
            Frame::trailers(trailers)
        })
    }
}

impl From<Incoming> for Body {
    fn from(inner: Incoming) -> Self {
        Self {
            inner: Some(inner),
            loan: None,
            exchange: None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        match std::task::ready!(Pin::new(inner).poll_frame(cx)) {
            None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                if let Some(exchange) = &mut self.exchange {
                    exchange.frame(frame.trailers_ref());
                }
                // Nothing follows trailers, and hyper does not ask.
                match frame.is_trailers() {
                    true => self.end(),
                    false => self.end_if_over(),
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let trailers = self.fail(&error);
                Poll::Ready(Some(trailers.ok_or(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.end_if_over();
        if let Some(exchange) = self.exchange.take() {
            exchange.end();
        }
    }
}
