//! Headers that belong to one hop, and the ways in which a request leaves HTTP.
//!
//! Only what has to go is taken out of a message, in place: maps are not rebuilt.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE},
};

/// Names the identity of a request's client to the application.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");
/// Which identity the application wants the server to have.
pub const REQUIRE_ID: HeaderName = HeaderName::from_static("l5d-require-id");
/// Says which error a proxy answered with.
pub const PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");
/// Says `close` if a proxy's error is fatal to the connection.
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const OLD_PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What becomes of the connection when the request succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// It stays HTTP.
    No,
    /// It carries another protocol after status 101.
    Upgrade,
    /// It carries bytes after a 2xx.
    Connect,
}

/// A request that cannot be passed on: it gets 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// `CONNECT` needs `host:port`, and HTTP/1.1 at least.
    #[error("CONNECT without host and port")]
    Connect,
    /// Two `Host` headers: nobody knows which one another server would use.
    #[error("more than one Host header")]
    Hosts,
}

impl BadRequest {
    /// What the client is told.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT without host and port",
            Self::Hosts => "more than one Host header",
        }
    }
}

/// Takes from a request what belongs to the hop that it came over, and says whether it wants to
/// leave HTTP.
///
/// # Errors
/// When it cannot be passed on.
pub fn strip_request<B>(request: &mut Request<B>) -> Result<Leaves, BadRequest> {
    if *request.method() == Method::CONNECT {
        let authority = request.uri().authority();
        if request.version() == Version::HTTP_10 || authority.is_none_or(|a| a.port().is_none()) {
            return Err(BadRequest::Connect);
        }
        strip(request.headers_mut());
        return Ok(Leaves::Connect);
    }
    // HTTP/2 has none of these headers, and libraries refuse those who send them.
    if request.version() >= Version::HTTP_2 {
        return Ok(Leaves::No);
    }
    if request
        .headers()
        .get_all(http::header::HOST)
        .iter()
        .nth(1)
        .is_some()
    {
        return Err(BadRequest::Hosts);
    }
    let upgrade = upgrade(request.headers()).filter(|_| request.version() == Version::HTTP_11);
    strip(request.headers_mut());
    let Some(protocol) = upgrade else {
        return Ok(Leaves::No);
    };
    restore_upgrade(request.headers_mut(), protocol);
    Ok(Leaves::Upgrade)
}

/// Takes from a response what belongs to the hop that it came over.
pub fn strip_response<B>(response: &mut Response<B>, asked: Leaves) {
    if response.version() >= Version::HTTP_2 {
        return;
    }
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = response.headers().get(UPGRADE).cloned();
    strip(response.headers_mut());
    match (asked, protocol) {
        (Leaves::Upgrade, Some(protocol)) if switching => {
            restore_upgrade(response.headers_mut(), protocol);
        }
        (Leaves::Connect, _) if response.status().is_success() => {
            response.headers_mut().remove(CONTENT_LENGTH);
            response.headers_mut().remove(TRANSFER_ENCODING);
        }
        _ => {}
    }
}

/// The protocol to switch to, unless it is HTTP/2: that is not offered.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let named = headers
        .get_all(CONNECTION)
        .iter()
        .any(|value| list(value).any(|name| name.eq_ignore_ascii_case(UPGRADE.as_str())));
    let is_h2c = list(protocol).any(|name| name.eq_ignore_ascii_case("h2c"));
    (named && !is_h2c).then(|| protocol.clone())
}

fn restore_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn strip(headers: &mut HeaderMap) {
    while let Some(value) = headers.remove(CONNECTION) {
        for name in list(&value) {
            // `TE: trailers` lets trailers through the next hop, too.
            let keep = name.eq_ignore_ascii_case("close")
                || name.eq_ignore_ascii_case("keep-alive")
                || name.eq_ignore_ascii_case(TE.as_str())
                // Without its framing a body would run into the next message.
                || name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str())
                || name.eq_ignore_ascii_case(TRANSFER_ENCODING.as_str())
                || name.eq_ignore_ascii_case(http::header::HOST.as_str());
            if !keep {
                headers.remove(name);
            }
        }
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(OLD_PROXY_CONNECTION);
    if headers.remove(UPGRADE).is_some() {
        headers.remove(HTTP2_SETTINGS);
    }
}

fn list(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or("").split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn headers_of_one_hop_go_and_upgrades_stay() {
        let v11 = Version::HTTP_11;
        for (headers, left, expected) in [
            (
                &[
                    ("connection", "keep-alive"),
                    ("keep-alive", "5"),
                    ("a", "1"),
                ][..],
                "a",
                Leaves::No,
            ),
            (
                &[
                    ("connection", "x-one, X-Two"),
                    ("x-one", "1"),
                    ("x-two", "2"),
                ],
                "",
                Leaves::No,
            ),
            (
                &[("connection", "te"), ("te", "trailers")],
                "te",
                Leaves::No,
            ),
            (
                &[("connection", "content-length"), ("content-length", "3")],
                "content-length",
                Leaves::No,
            ),
            (
                &[("proxy-connection", "close"), ("upgrade", "websocket")],
                "",
                Leaves::No,
            ),
            (
                &[
                    ("connection", "Upgrade"),
                    ("upgrade", "websocket"),
                    ("sec-websocket-key", "k"),
                ],
                "connection sec-websocket-key upgrade",
                Leaves::Upgrade,
            ),
            (
                &[
                    ("connection", "upgrade, http2-settings"),
                    ("upgrade", "h2c"),
                    ("http2-settings", "A"),
                ],
                "",
                Leaves::No,
            ),
        ] {
            let mut request = request(v11, "GET", "/", headers);
            assert_eq!(strip_request(&mut request), Ok(expected), "{headers:?}");
            let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names.join(" "), left, "{headers:?}");
        }
    }

    #[test]
    fn requests_that_are_ambiguous_or_malformed_are_refused() {
        let (v10, v11) = (Version::HTTP_10, Version::HTTP_11);
        let hosts = &[("host", "a"), ("host", "b")][..];
        for (version, method, uri, headers, expected) in [
            (v11, "CONNECT", "db:5432", &[][..], Ok(Leaves::Connect)),
            (v10, "CONNECT", "db:5432", &[], Err(BadRequest::Connect)),
            (v11, "CONNECT", "db", &[], Err(BadRequest::Connect)),
            (v11, "CONNECT", "/", &[], Err(BadRequest::Connect)),
            (v11, "GET", "/", hosts, Err(BadRequest::Hosts)),
            (
                v10,
                "GET",
                "/",
                &[("connection", "upgrade"), ("upgrade", "websocket")],
                Ok(Leaves::No),
            ),
        ] {
            let mut request = request(version, method, uri, headers);
            assert_eq!(
                strip_request(&mut request),
                expected,
                "{method} {uri} {headers:?}"
            );
        }
    }

    #[test]
    fn a_2xx_to_connect_has_no_framing() {
        let mut response = Response::builder()
            .header(CONTENT_LENGTH, "0")
            .body(())
            .unwrap();
        strip_response(&mut response, Leaves::Connect);
        assert!(response.headers().is_empty());
    }
}
