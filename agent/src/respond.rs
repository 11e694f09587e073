//! The one place where an error becomes an answer.
//!
//! HTTP clients get a status and an empty body; gRPC clients get 200 and a `grpc-status`. Whether
//! the client's connection closes, and what the headers tell, are Linkerd's rules.

use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE},
};

use crate::{
    policy::classify::GRPC_STATUS,
    transport::{
        body::Body,
        connector::OpenError,
        headers::{PROXY_CONNECTION, PROXY_ERROR},
        pool::SendError,
    },
};

const GRPC_MESSAGE: &str = "grpc-message";

/// Why a request is answered by the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing was ready for too long.
    Failfast,
    /// The connection did not open in time.
    ConnectTimeout,
    /// The pod is over one of its limits.
    LoadShed,
    /// The connection failed, or could not be opened.
    Io,
    /// The endpoint is not who the request wants (`l5d-require-id`).
    RequireId,
    /// Nobody knows yet where the request may go.
    Undiscovered,
    /// Traffic may not go there.
    Forbidden(&'static str),
    /// The client may not come.
    Unauthorized,
    /// No route is for the request.
    NoRoute,
    /// The request makes no sense.
    BadRequest(&'static str),
    /// It would come back to where it is.
    Loop,
}

/// What is to be known of the request for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The request's version as the client's connection has it.
    pub version: Version,
    /// Whether it is gRPC.
    pub is_grpc: bool,
    /// Whether the client may know what went wrong (`l5d-proxy-*`).
    pub informed: bool,
    /// Whether it is HTTP/1 carried in HTTP/2.
    pub was_carried: bool,
}

struct Answer {
    status: StatusCode,
    grpc: &'static str,
    closes: bool,
    text: &'static str,
}

impl Cause {
    /// The error as `*_http_errors_total` names it; `None` if it is no error of the proxy's.
    pub const fn label(self) -> Option<&'static str> {
        match self {
            Self::Failfast => Some("failfast"),
            Self::LoadShed => Some("loadshed"),
            Self::ConnectTimeout | Self::Io => Some("i/o"),
            Self::RequireId => Some("identity required"),
            Self::Undiscovered | Self::BadRequest(_) | Self::Loop => Some("unexpected"),
            Self::Forbidden(_) | Self::Unauthorized | Self::NoRoute => None,
        }
    }

    const fn answer(self) -> Answer {
        let (status, grpc, closes, text) = match self {
            Self::Failfast => (
                StatusCode::GATEWAY_TIMEOUT,
                "4",
                true,
                "service in fail-fast",
            ),
            Self::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "4", true, "connect timed out"),
            Self::Undiscovered => (
                StatusCode::GATEWAY_TIMEOUT,
                "4",
                true,
                "destination is not known yet",
            ),
            Self::LoadShed => (
                StatusCode::SERVICE_UNAVAILABLE,
                "14",
                true,
                "service is overloaded",
            ),
            Self::Io => (StatusCode::BAD_GATEWAY, "14", true, "connection error"),
            Self::RequireId => (
                StatusCode::BAD_GATEWAY,
                "14",
                true,
                "required identity does not match",
            ),
            Self::NoRoute => (StatusCode::NOT_FOUND, "5", false, "no route for request"),
            Self::Forbidden(text) => (StatusCode::FORBIDDEN, "7", false, text),
            Self::Unauthorized => (
                StatusCode::FORBIDDEN,
                "7",
                false,
                "unauthorized request on route",
            ),
            Self::BadRequest(text) => (StatusCode::BAD_REQUEST, "3", true, text),
            Self::Loop => (StatusCode::LOOP_DETECTED, "10", true, "request loops"),
        };
        Answer {
            status,
            grpc,
            closes,
            text,
        }
    }
}

impl From<&OpenError> for Cause {
    fn from(error: &OpenError) -> Self {
        if error.is_timeout() {
            return Self::ConnectTimeout;
        }
        match error {
            OpenError::Dial(_)
            | OpenError::NoCertificate
            | OpenError::Tls { .. }
            | OpenError::Io { .. }
            | OpenError::NoHeader { .. }
            | OpenError::BackingOff { .. } => Self::Io,
            OpenError::TimedOut { .. } => Self::ConnectTimeout,
        }
    }
}

impl From<&SendError> for Cause {
    fn from(error: &SendError) -> Self {
        match error {
            SendError::Open(error) => error.into(),
            SendError::Lost(_) => Self::Io,
        }
    }
}

/// Makes the answer to a request.
pub fn respond(cause: Cause, to: Asker) -> Response<Body> {
    let answer = cause.answer();
    let mut response = Response::new(Body::empty());
    *response.version_mut() = to.version;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    if to.is_grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(answer.grpc));
    }
    if to.informed {
        let text = HeaderValue::from_static(answer.text);
        if to.is_grpc {
            headers.insert(GRPC_MESSAGE, text.clone());
        }
        headers.insert(PROXY_ERROR, text);
        if answer.closes {
            headers.insert(PROXY_CONNECTION, HeaderValue::from_static("close"));
        }
    }
    if answer.closes && to.version == Version::HTTP_11 && !to.was_carried {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !to.is_grpc {
        *response.status_mut() = answer.status;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP_11: Asker = Asker {
        version: Version::HTTP_11,
        is_grpc: false,
        informed: true,
        was_carried: false,
    };

    #[test]
    fn causes_become_linkerds_statuses() {
        for (cause, status, grpc, closes) in [
            (Cause::Failfast, 504, "4", true),
            (Cause::ConnectTimeout, 504, "4", true),
            (Cause::Undiscovered, 504, "4", true),
            (Cause::LoadShed, 503, "14", true),
            (Cause::Io, 502, "14", true),
            (Cause::RequireId, 502, "14", true),
            (Cause::NoRoute, 404, "5", false),
            (Cause::Forbidden("no"), 403, "7", false),
            (Cause::Unauthorized, 403, "7", false),
            (Cause::BadRequest("no"), 400, "3", true),
            (Cause::Loop, 508, "10", true),
        ] {
            let response = respond(cause, HTTP_11);
            assert_eq!(response.status(), status, "{cause:?}");
            assert_eq!(
                response.headers().contains_key(CONNECTION),
                closes,
                "{cause:?}"
            );
            assert_eq!(
                response.headers().contains_key(PROXY_CONNECTION),
                closes,
                "{cause:?}"
            );
            let to = Asker {
                version: Version::HTTP_2,
                is_grpc: true,
                ..HTTP_11
            };
            let response = respond(cause, to);
            assert_eq!(response.status(), 200, "{cause:?}");
            assert_eq!(response.headers()[GRPC_STATUS], grpc, "{cause:?}");
            assert!(!response.headers().contains_key(CONNECTION), "{cause:?}");
        }
    }

    #[test]
    fn strangers_learn_nothing_and_carried_requests_keep_their_connection() {
        let to = Asker {
            informed: false,
            was_carried: true,
            ..HTTP_11
        };
        let response = respond(Cause::Io, to);
        let names: Vec<_> = response.headers().keys().collect();
        assert_eq!(names, [CONTENT_LENGTH]);
    }
}
