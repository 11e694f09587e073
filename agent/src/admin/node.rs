//! The node's page: every pod's metrics, readiness of the agent, and what it knows.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use serde_json::Value;
use weft_runtime::{
    admin::{Admin, text},
    ready::Readiness,
};

use crate::metrics::NodeMetrics;

/// Makes a description of something, for people.
pub type Describe = Box<dyn Fn() -> Value + Send + Sync>;

/// Makes the agent's own admin server. `pages` are JSON documents by path, such as `/debug/pods`.
pub fn node_admin(
    readiness: Readiness,
    metrics: Arc<NodeMetrics>,
    pages: BTreeMap<&'static str, Describe>,
) -> Admin {
    Admin {
        readiness,
        metrics: Arc::new(move || metrics.render_node()),
        extra: Some(Arc::new(move |request| {
            let page = pages.get(request.uri().path())?;
            match *request.method() {
                http::Method::GET => Some(json(&page())),
                _ => Some(text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")),
            }
        })),
    }
}

/// A JSON document.
pub(super) fn json(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
