//! Writes families as text: one head each, then the samples of every scope.
//!
//! A scope is a pod, or the agent itself; its `prefix` holds labels that are put before those of
//! each sample. Families without samples are left out. Two dialects: Linkerd's (the type line
//! carries the counter's full name) for a pod's own page, and OpenMetrics for the node's.

use std::{fmt::Write as _, sync::Arc};

use super::{
    Counter, HttpMetrics, TcpMetrics,
    family::{Family, Head, Kind},
    histogram::{BOUNDS, Histogram},
    http::ResponseKey,
};

/// How type lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `# TYPE request_total counter`
    Linkerd,
    /// `# TYPE request counter`
    OpenMetrics,
}

/// Handles by label text.
type Handles<T> = Vec<(Arc<str>, Arc<T>)>;

/// What one scope has counted, taken out of its locks.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Labels put before all others, such as `namespace="shop",pod="web-1"`; may be empty.
    pub(super) prefix: Arc<str>,
    pub(super) http: Handles<HttpMetrics>,
    pub(super) tcp: Handles<TcpMetrics>,
    pub(super) counters: Vec<(Family, Handles<Counter>)>,
    pub(super) control: Handles<HttpMetrics>,
    pub(super) others: Vec<Sample>,
}

/// A sample of a family that no handle belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) head: Head,
    pub(super) labels: &'static str,
    pub(super) value: f64,
}

/// Writes the families of all scopes.
pub(super) fn render(scopes: &[Scope], dialect: Dialect) -> String {
    let mut page = Page {
        text: String::new(),
        dialect,
        scopes,
    };
    page.http(&HTTP, |scope| &scope.http);
    page.http(&CONTROL, |scope| &scope.control);
    page.tcp();
    for family in Family::ALL {
        page.counters(family);
    }
    page.others();
    page.text
}

/// Heads of request count, response latency and response count.
struct HttpHeads {
    requests: Head,
    latency: Head,
    responses: Head,
}

const REQUESTS: &str = "Total count of HTTP requests.";
const LATENCY: &str =
    "Elapsed times between a request's headers being received and its response stream completing";
const RESPONSES: &str = "Total count of HTTP responses.";

const HTTP: HttpHeads = HttpHeads {
    requests: Head::counter("request_total", REQUESTS),
    latency: Head::histogram("response_latency_ms", LATENCY),
    responses: Head::counter("response_total", RESPONSES),
};

const CONTROL: HttpHeads = HttpHeads {
    requests: Head::counter("control_request_total", REQUESTS),
    latency: Head::histogram("control_response_latency_ms", LATENCY),
    responses: Head::counter("control_response_total", RESPONSES),
};

struct Page<'scopes> {
    text: String,
    dialect: Dialect,
    scopes: &'scopes [Scope],
}

impl<'scopes> Page<'scopes> {
    fn http(&mut self, heads: &HttpHeads, of: fn(&Scope) -> &Handles<HttpMetrics>) {
        let all: Vec<_> = samples(self.scopes, of).collect();
        if all.is_empty() {
            return;
        }
        self.head(heads.requests);
        for (prefix, labels, metrics) in &all {
            let count = metrics.requests.value();
            self.sample(heads.requests.name, &[prefix, labels], count);
        }
        let mut head = Some(heads.latency);
        for (prefix, labels, metrics) in &all {
            for (status, histogram) in metrics.latencies.iter() {
                self.head_once(&mut head);
                let status = status_label(status);
                self.histogram(heads.latency.name, [prefix, labels, &status], histogram);
            }
        }
        let mut head = Some(heads.responses);
        for (prefix, labels, metrics) in &all {
            for (key, count) in metrics.responses.iter() {
                self.head_once(&mut head);
                let (status, class) = (status_label(key.status), class_labels(key));
                let parts = [*prefix, *labels, &status, &class];
                self.sample(heads.responses.name, &parts, count.value());
            }
        }
    }

    fn tcp(&mut self) {
        let all: Vec<_> = samples(self.scopes, |scope| &scope.tcp).collect();
        if all.is_empty() {
            return;
        }
        type Value = fn(&TcpMetrics) -> u64;
        let families: [(Head, Value); 4] = [
            (
                Head::counter("tcp_open_total", "Total count of opened connections"),
                |tcp| tcp.opened.value(),
            ),
            (
                Head::gauge(
                    "tcp_open_connections",
                    "Number of currently-open connections",
                ),
                TcpMetrics::open_now,
            ),
            (
                Head::counter(
                    "tcp_read_bytes_total",
                    "Total count of bytes read from peers",
                ),
                |tcp| tcp.read.value(),
            ),
            (
                Head::counter(
                    "tcp_write_bytes_total",
                    "Total count of bytes written to peers",
                ),
                |tcp| tcp.written.value(),
            ),
        ];
        for (head, value) in families {
            self.head(head);
            for (prefix, labels, tcp) in &all {
                self.sample(head.name, &[prefix, labels], value(tcp));
            }
        }
        let close = Head::counter("tcp_close_total", "Total count of closed connections");
        let mut head = Some(close);
        for (prefix, labels, tcp) in &all {
            for (errno, count) in tcp.closed.iter() {
                self.head_once(&mut head);
                let errno = format!("errno=\"{}\"", errno.unwrap_or_default());
                self.sample(close.name, &[prefix, labels, &errno], count.value());
            }
        }
    }

    fn counters(&mut self, family: Family) {
        let mut head = Some(family.head());
        for scope in self.scopes {
            let of_family = scope.counters.iter().filter(|(of, _)| *of == family);
            for (labels, counter) in of_family.flat_map(|(_, handles)| handles) {
                self.head_once(&mut head);
                let parts = [&*scope.prefix, labels];
                self.sample(family.head().name, &parts, counter.value());
            }
        }
    }

    fn others(&mut self) {
        let mut names: Vec<&str> = Vec::new();
        for Sample { head, .. } in self.scopes.iter().flat_map(|scope| &scope.others) {
            if names.contains(&head.name) {
                continue;
            }
            names.push(head.name);
            self.head(*head);
            for scope in self.scopes {
                let of_family = scope.others.iter().filter(|of| of.head.name == head.name);
                for sample in of_family {
                    self.sample(head.name, &[&scope.prefix, sample.labels], sample.value);
                }
            }
        }
    }

    fn histogram(&mut self, name: &str, parts: [&str; 3], histogram: &Histogram) {
        let [prefix, labels, status] = parts;
        let counts = histogram.cumulative();
        let bucket = format!("{name}_bucket");
        for (n, count) in counts.iter().enumerate() {
            let le = match BOUNDS.get(n) {
                Some(bound) => format!("le=\"{bound}\""),
                None => "le=\"+Inf\"".to_owned(),
            };
            self.sample(&bucket, &[prefix, labels, status, &le], count);
        }
        let total = counts[BOUNDS.len()];
        self.sample(&format!("{name}_count"), &parts, total);
        self.sample(&format!("{name}_sum"), &parts, histogram.sum());
    }

    fn head_once(&mut self, head: &mut Option<Head>) {
        if let Some(head) = head.take() {
            self.head(head);
        }
    }

    fn head(&mut self, head: Head) {
        let name = match (self.dialect, head.kind) {
            (Dialect::OpenMetrics, Kind::Counter) | (_, Kind::BaseCounter) => {
                head.name.strip_suffix("_total").unwrap_or(head.name)
            }
            (_, Kind::Counter | Kind::Gauge | Kind::Histogram) => head.name,
        };
        let (help, kind) = (head.help, head.kind.label());
        // Writing to a String cannot fail.
        let _infallible = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        if head.kind == Kind::Gauge && name.ends_with("_seconds") {
            let _infallible = writeln!(self.text, "# UNIT {name} seconds");
        }
    }

    fn sample(&mut self, name: &str, labels: &[&str], value: impl std::fmt::Display) {
        self.text.push_str(name);
        let mut open = '{';
        for part in labels.iter().filter(|part| !part.is_empty()) {
            self.text.push(open);
            self.text.push_str(part);
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        // Writing to a String cannot fail.
        let _infallible = writeln!(self.text, " {value}");
    }
}

/// Every handle of one kind, with the labels of its scope and its own.
fn samples<'scope, T: 'scope>(
    scopes: &'scope [Scope],
    of: fn(&Scope) -> &Handles<T>,
) -> impl Iterator<Item = (&'scope str, &'scope str, &'scope T)> {
    scopes.iter().flat_map(move |scope| {
        of(scope)
            .iter()
            .map(|(labels, handle)| (&*scope.prefix, &**labels, &**handle))
    })
}

fn status_label(status: Option<u16>) -> String {
    status.map_or_else(String::new, |status| format!("status_code=\"{status}\""))
}

fn class_labels(key: ResponseKey) -> String {
    let class = if key.failure { "failure" } else { "success" };
    let grpc = key
        .grpc_status
        .map_or_else(String::new, |code| code.to_string());
    let error = key.error.unwrap_or_default();
    format!("classification=\"{class}\",grpc_status=\"{grpc}\",error=\"{error}\"")
}
