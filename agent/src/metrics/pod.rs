//! The series of one pod.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    AuthzLabels, Counter, HttpMetrics, InboundLabels, OutboundLabels, RouteLabels, ServerLabels,
    ServerTls, TcpLabels, TcpMetrics,
    family::Family,
    labels::Labels,
    render::Scope,
    series::{Activity, Series},
};

/// Sets of labels per kind and pod. A pod that talks to more endpoints than this has its further
/// ones counted in no series, and `weft_metrics_series_dropped_total` says how many.
const MAX_LABEL_SETS: usize = 2048;

/// The series of one pod.
///
/// Handles are resolved under a short lock and then kept: do it once per endpoint or route, not
/// once per request.
#[derive(Debug, Default)]
pub struct PodMetrics {
    prefix: Arc<str>,
    http: Mutex<Series<HttpMetrics>>,
    tcp: Mutex<Series<TcpMetrics>>,
    counters: Mutex<BTreeMap<Family, Series<Counter>>>,
    dropped: Counter,
}

impl PodMetrics {
    /// Makes an empty set. `labels` say whose it is where the series of many pods stand together.
    pub fn new<'label>(labels: impl IntoIterator<Item = (&'label str, &'label str)>) -> Self {
        let mut text = Labels::default();
        for (key, value) in labels {
            text.push(key, value);
        }
        Self {
            prefix: text.into_text(),
            ..Self::default()
        }
    }

    /// Requests to an endpoint.
    pub fn outbound_http(&self, labels: &OutboundLabels) -> Arc<HttpMetrics> {
        let mut text = Labels::default();
        text.push("direction", "outbound").outbound(labels);
        self.resolve(&mut self.http.lock(), text)
    }

    /// Requests that the pod gets.
    pub fn inbound_http(&self, labels: &InboundLabels) -> Arc<HttpMetrics> {
        let mut text = Labels::default();
        text.push("direction", "inbound").inbound(labels);
        self.resolve(&mut self.http.lock(), text)
    }

    /// Connections.
    pub fn tcp(&self, labels: &TcpLabels) -> Arc<TcpMetrics> {
        let mut text = Labels::default();
        text.tcp(labels);
        self.resolve(&mut self.tcp.lock(), text)
    }

    /// `inbound_http_authz_allow_total`: requests that were let pass.
    pub fn http_authz_allow(&self, labels: &InboundLabels) -> Arc<Counter> {
        self.counter(Family::InboundHttpAuthzAllow, |text| {
            text.target(labels.target)
                .server(&labels.server)
                .route(&labels.route)
                .authz(&labels.authz)
                .server_tls(&labels.tls)
        })
    }

    /// `inbound_http_authz_deny_total`: requests that were denied (403).
    pub fn http_authz_deny(
        &self,
        target: SocketAddr,
        server: &ServerLabels,
        route: &RouteLabels,
        tls: &ServerTls,
    ) -> Arc<Counter> {
        self.counter(Family::InboundHttpAuthzDeny, |text| {
            text.target(target)
                .server(server)
                .route(route)
                .server_tls(tls)
        })
    }

    /// `inbound_http_route_not_found_total`: requests that no route of the server is for (404).
    pub fn http_route_not_found(
        &self,
        target: SocketAddr,
        server: &ServerLabels,
        tls: &ServerTls,
    ) -> Arc<Counter> {
        self.counter(Family::InboundHttpRouteNotFound, |text| {
            text.target(target).server(server).server_tls(tls)
        })
    }

    /// `inbound_tcp_authz_allow_total`: connections that were let pass.
    pub fn tcp_authz_allow(
        &self,
        target: SocketAddr,
        server: &ServerLabels,
        authz: &AuthzLabels,
        tls: &ServerTls,
    ) -> Arc<Counter> {
        self.counter(Family::InboundTcpAuthzAllow, |text| {
            text.target(target)
                .server(server)
                .authz(authz)
                .server_tls(tls)
        })
    }

    /// `inbound_tcp_authz_deny_total`: connections that were denied.
    pub fn tcp_authz_deny(
        &self,
        target: SocketAddr,
        server: &ServerLabels,
        tls: &ServerTls,
    ) -> Arc<Counter> {
        self.counter(Family::InboundTcpAuthzDeny, |text| {
            text.target(target).server(server).server_tls(tls)
        })
    }

    /// `inbound_tcp_authz_terminate_total`: open connections that a policy change has cut.
    pub fn tcp_authz_terminate(
        &self,
        target: SocketAddr,
        server: &ServerLabels,
        tls: &ServerTls,
    ) -> Arc<Counter> {
        self.counter(Family::InboundTcpAuthzTerminate, |text| {
            text.target(target).server(server).server_tls(tls)
        })
    }

    /// `inbound_http_errors_total`; `error` from the set of `loadshed`, `failfast`,
    /// `tls detection timeout`, `gateway loop`, `gateway domain invalid`, `i/o`, `unexpected`.
    pub fn inbound_http_error(
        &self,
        error: &'static str,
        target: SocketAddr,
        server: &ServerLabels,
    ) {
        self.counter(Family::InboundHttpErrors, |text| {
            text.push("error", error).target(target).server(server)
        })
        .increment();
    }

    /// `inbound_tcp_errors_total`; `error` as for HTTP.
    pub fn inbound_tcp_error(&self, error: &'static str, target: SocketAddr) {
        self.counter(Family::InboundTcpErrors, |text| {
            text.push("error", error).target(target)
        })
        .increment();
    }

    /// `outbound_http_errors_total`; `error` from the set of `failfast`, `loadshed`,
    /// `identity required`, `i/o`, `response timeout`, `unexpected`.
    pub fn outbound_http_error(&self, error: &'static str) {
        self.counter(Family::OutboundHttpErrors, |text| text.push("error", error))
            .increment();
    }

    /// `outbound_tcp_errors_total`; `error` as for HTTP.
    pub fn outbound_tcp_error(&self, error: &'static str, target: SocketAddr) {
        self.counter(Family::OutboundTcpErrors, |text| {
            text.target(target).push("error", error)
        })
        .increment();
    }

    /// Drops series that nobody uses any more.
    pub fn retire_idle(&self) {
        let now = Instant::now();
        self.http.lock().retire(now);
        self.tcp.lock().retire(now);
        for series in self.counters.lock().values_mut() {
            series.retire(now);
        }
    }

    /// What has been counted, with the labels that say whose it is if `labelled`.
    pub(super) fn scope(&self, labelled: bool) -> Scope {
        let mut scope = Scope {
            http: self.http.lock().snapshot(),
            tcp: self.tcp.lock().snapshot(),
            ..Scope::default()
        };
        scope.counters = self
            .counters
            .lock()
            .iter()
            .map(|(family, series)| (*family, series.snapshot()))
            .collect();
        if labelled {
            scope.prefix = Arc::clone(&self.prefix);
        }
        if self.dropped.value() > 0 {
            let dropped = Arc::new(Counter::default());
            dropped.add(self.dropped.value());
            scope
                .counters
                .push((Family::SeriesDropped, vec![("".into(), dropped)]));
        }
        scope
    }

    fn counter(
        &self,
        family: Family,
        labels: impl FnOnce(&mut Labels) -> &mut Labels,
    ) -> Arc<Counter> {
        let mut text = Labels::default();
        labels(&mut text);
        self.resolve(self.counters.lock().entry(family).or_default(), text)
    }

    /// The handle of a set of labels; above the limit one that counts for nobody.
    fn resolve<T: Activity>(&self, series: &mut Series<T>, labels: Labels) -> Arc<T> {
        series
            .resolve(labels.into_text(), MAX_LABEL_SETS)
            .unwrap_or_else(|| {
                self.dropped.increment();
                Arc::default()
            })
    }
}
