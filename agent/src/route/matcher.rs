//! Matching of method and path.

use http::Method;

use crate::discovery::model::{InboundRoute, MethodAndPath, PathMatch};

/// Index of the route for a request, if there is one.
pub fn find(routes: &[InboundRoute], method: &Method, path: &str) -> Option<usize> {
    routes.iter().position(|route| {
        route.matches.is_empty() || route.matches.iter().any(|one| matches(one, method, path))
    })
}

fn matches(wanted: &MethodAndPath, method: &Method, path: &str) -> bool {
    let method_fits = wanted.method.as_ref().is_none_or(|wanted| wanted == method);
    method_fits
        && match &wanted.path {
            None => true,
            Some(PathMatch::Exact(exact)) => **exact == *path,
            Some(PathMatch::Prefix(prefix)) => is_below(path, prefix),
        }
}

/// Whether a path is equal to a prefix or below it, by whole segments.
fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::discovery::model::Meta;

    fn route(method: Option<Method>, path: Option<PathMatch>) -> InboundRoute {
        InboundRoute {
            meta: Meta::default_named("test"),
            matches: vec![MethodAndPath { method, path }],
            authorizations: Arc::from([]),
        }
    }

    #[test]
    fn the_first_route_that_is_for_a_request_is_taken() {
        let routes = [
            route(Some(Method::GET), Some(PathMatch::Exact("/live".into()))),
            route(None, Some(PathMatch::Prefix("/api/".into()))),
            route(Some(Method::POST), None),
        ];
        for (method, path, expected) in [
            (Method::GET, "/live", Some(0)),
            (Method::HEAD, "/live", None),
            (Method::GET, "/live/", None),
            (Method::GET, "/api", Some(1)),
            (Method::GET, "/api/x", Some(1)),
            (Method::GET, "/apix", None),
            (Method::POST, "/", Some(2)),
        ] {
            assert_eq!(find(&routes, &method, path), expected, "{method} {path}");
        }
        let mut default = route(None, None);
        default.matches.clear();
        assert_eq!(find(&[default], &Method::GET, "/any"), Some(0));
    }
}
