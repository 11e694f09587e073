//! HTTP/1 carried over HTTP/2 between two proxies (`l5d-orig-proto`).
//!
//! The near proxy turns an HTTP/1 request into HTTP/2 and says in a header what it was; the far
//! one turns it back before the application sees it. The response takes the same way back.
//! Requests that leave HTTP (`Upgrade`, `CONNECT`) are never carried so.

use http::{
    HeaderName, HeaderValue, Request, Response, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
    uri::{Authority, PathAndQuery, Scheme},
};

const ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");
const HTTP_11: &str = "HTTP/1.1";
const HTTP_10: &str = "HTTP/1.0";
const ABSOLUTE_FORM: &str = "; absolute-form";

/// Whether a request can be carried: it has to have a path, which `OPTIONS *` has not.
pub fn can_carry<B>(request: &Request<B>) -> bool {
    request.version() < Version::HTTP_2 && request.uri().path().starts_with('/')
}

/// Turns an HTTP/1 request into HTTP/2. `default` is the authority of a request that names none.
pub fn upgrade<B>(request: &mut Request<B>, default: impl FnOnce() -> Authority) {
    let was_absolute = request.uri().scheme().is_some();
    let header = match (request.version() == Version::HTTP_10, was_absolute) {
        (false, false) => HTTP_11,
        (false, true) => "HTTP/1.1; absolute-form",
        (true, false) => HTTP_10,
        (true, true) => "HTTP/1.0; absolute-form",
    };
    request
        .headers_mut()
        .insert(ORIG_PROTO, HeaderValue::from_static(header));
    request.headers_mut().remove(TRANSFER_ENCODING);
    if !was_absolute {
        let authority = authority(request).unwrap_or_else(default);
        set_uri(request, Some((Scheme::HTTP, authority)));
    }
    *request.version_mut() = Version::HTTP_2;
}

/// Turns the response to a request that was carried back into HTTP/1.
pub fn restore<B>(response: &mut Response<B>, asked: Version) {
    let header = response.headers_mut().remove(ORIG_PROTO);
    *response.version_mut() = match header.as_ref().map(HeaderValue::as_bytes) {
        Some(b"HTTP/1.1") => Version::HTTP_11,
        Some(b"HTTP/1.0") => Version::HTTP_10,
        _ => asked,
    };
}

/// Turns a request that was carried back into the HTTP/1 that it was. Says whether it was one.
///
/// The header is removed from every request.
pub fn downgrade<B>(request: &mut Request<B>) -> bool {
    let Some(header) = request.headers_mut().remove(ORIG_PROTO) else {
        return false;
    };
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let text = header.to_str().unwrap_or_default();
    let (version, was_absolute) = match text.strip_suffix(ABSOLUTE_FORM) {
        Some(version) => (version, true),
        None => (text, false),
    };
    *request.version_mut() = match version {
        HTTP_10 => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    if !was_absolute {
        to_origin_form(request);
    }
    true
}

/// Marks the response to a request that was turned back, and makes it HTTP/2 again.
pub fn mark<B>(response: &mut Response<B>) {
    let version = match response.version() {
        Version::HTTP_10 => HTTP_10,
        _ => HTTP_11,
    };
    response
        .headers_mut()
        .insert(ORIG_PROTO, HeaderValue::from_static(version));
    response.headers_mut().remove(TRANSFER_ENCODING);
    *response.version_mut() = Version::HTTP_2;
}

/// The authority that a request is for: of its URI, else of its `Host` header.
pub fn authority<B>(request: &Request<B>) -> Option<Authority> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.clone());
    }
    Authority::try_from(request.headers().get(HOST)?.as_bytes()).ok()
}

/// Puts another authority into a request, wherever it has one.
pub fn set_authority<B>(request: &mut Request<B>, authority: &Authority) {
    if let Some(scheme) = request.uri().scheme().cloned() {
        set_uri(request, Some((scheme, authority.clone())));
    }
    if request.version() < Version::HTTP_2 || request.headers().contains_key(HOST) {
        // An authority is always a valid header value.
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
    }
}

/// Leaves only the path in the request line; the authority moves to `Host` if there is none.
fn to_origin_form<B>(request: &mut Request<B>) {
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    set_uri(request, None);
}

fn set_uri<B>(request: &mut Request<B>, base: Option<(Scheme, Authority)>) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    (parts.scheme, parts.authority) = base.unzip();
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    // All three parts or the path alone: both are valid URIs.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_out_as_they_went_in() {
        let default = || Authority::from_static("10.0.0.1:80");
        for (version, uri, host, carried, expected_host) in [
            (
                Version::HTTP_11,
                "/a?b=c",
                Some("web"),
                "http://web/a?b=c",
                Some("web"),
            ),
            (
                Version::HTTP_11,
                "http://web:81/a",
                Some("web:81"),
                "http://web:81/a",
                Some("web:81"),
            ),
            (
                Version::HTTP_10,
                "/a",
                None,
                "http://10.0.0.1:80/a",
                Some("10.0.0.1:80"),
            ),
            (Version::HTTP_10, "http://web/", None, "http://web/", None),
        ] {
            let mut request = Request::builder().version(version).uri(uri);
            if let Some(host) = host {
                request = request.header(HOST, host);
            }
            let mut request = request
                .header(TRANSFER_ENCODING, "chunked")
                .body(())
                .unwrap();
            upgrade(&mut request, default);
            assert_eq!(request.version(), Version::HTTP_2);
            assert_eq!(request.uri(), carried);
            assert!(!request.headers().contains_key(TRANSFER_ENCODING));
            assert!(downgrade(&mut request));
            assert_eq!(request.version(), version);
            assert_eq!(request.uri(), uri);
            let host = request
                .headers()
                .get(HOST)
                .map(|host| host.to_str().unwrap());
            assert_eq!(host, expected_host, "{uri}");
            assert!(!request.headers().contains_key(ORIG_PROTO));
        }
    }

    #[test]
    fn responses_say_which_version_they_were() {
        for version in [Version::HTTP_10, Version::HTTP_11] {
            let mut response = Response::builder().version(version).body(()).unwrap();
            mark(&mut response);
            assert_eq!(response.version(), Version::HTTP_2);
            restore(&mut response, Version::HTTP_11);
            assert_eq!(response.version(), version);
            assert!(response.headers().is_empty());
        }
    }

    #[test]
    fn only_http2_is_turned_back_and_the_header_always_goes() {
        let mut request = Request::builder()
            .header(ORIG_PROTO, HTTP_10)
            .body(())
            .unwrap();
        assert!(!downgrade(&mut request));
        assert!(request.headers().is_empty());
        assert_eq!(request.version(), Version::HTTP_11);
    }

    #[test]
    fn an_overridden_authority_is_put_wherever_there_was_one() {
        let authority = Authority::from_static("gateway:80");
        let mut request = Request::builder()
            .uri("/a")
            .header(HOST, "web")
            .body(())
            .unwrap();
        set_authority(&mut request, &authority);
        assert_eq!(
            (request.uri().to_string(), &request.headers()[HOST]),
            ("/a".into(), &"gateway:80".parse().unwrap())
        );
        let mut request = Request::builder()
            .uri("http://web/a")
            .version(Version::HTTP_2)
            .body(())
            .unwrap();
        set_authority(&mut request, &authority);
        assert_eq!(request.uri(), "http://gateway:80/a");
        assert!(request.headers().is_empty());
    }
}
