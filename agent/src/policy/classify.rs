//! Whether a response counts as a success: by its status, or by its gRPC status.

use http::{HeaderMap, header::CONTENT_TYPE};

use crate::metrics::Classification;

/// The header or trailer in which a gRPC response says how it went.
pub const GRPC_STATUS: &str = "grpc-status";

/// gRPC status of a response that ended without one.
const UNKNOWN: u16 = 2;

/// Whether a request is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The gRPC status in headers or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Classifies a response that is no gRPC.
pub const fn classify_http(status: u16) -> Classification {
    if status >= 500 && status < 600 {
        Classification::Failure
    } else {
        Classification::Success
    }
}

/// Classifies a gRPC response by the status that it ended with; without one it is a success of
/// unknown status, as Linkerd counts it.
pub const fn classify_grpc(status: Option<u16>) -> (Classification, u16) {
    let Some(status) = status else {
        return (Classification::Success, UNKNOWN);
    };
    let class = match status {
        // Unknown, deadline exceeded, permission denied, internal, unavailable, data loss.
        2 | 4 | 7 | 13 | 14 | 15 => Classification::Failure,
        _ => Classification::Success,
    };
    (class, status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Classification::{Failure, Success};

    #[test]
    fn responses_are_classified_as_linkerd_does() {
        for (status, expected) in [
            (101, Success),
            (404, Success),
            (500, Failure),
            (599, Failure),
        ] {
            assert_eq!(classify_http(status), expected, "{status}");
        }
        for (status, expected) in [
            (None, (Success, 2)),
            (Some(0), (Success, 0)),
            (Some(2), (Failure, 2)),
            (Some(8), (Success, 8)),
            (Some(12), (Success, 12)),
            (Some(14), (Failure, 14)),
            (Some(16), (Success, 16)),
        ] {
            assert_eq!(classify_grpc(status), expected, "{status:?}");
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type_and_status_read_if_it_is_a_number() {
        let mut headers = HeaderMap::new();
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/json", false),
        ] {
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        for (status, expected) in [("0", Some(0)), ("14", Some(14)), ("no", None)] {
            headers.insert(GRPC_STATUS, status.parse().unwrap());
            assert_eq!(grpc_status(&headers), expected, "{status}");
        }
    }
}
