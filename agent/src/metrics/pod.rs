//! The series of one pod.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;

use super::{
    AuthzLabels, Counter, HttpMetrics, InboundLabels, OutboundLabels, RouteLabels, ServerLabels,
    ServerTls, TcpLabels, TcpMetrics, labels::Labels,
};

/// The series of one pod.
///
/// Handles are resolved under a short lock and then kept: do it once per endpoint or route, not
/// once per request.
#[derive(Debug, Default)]
pub struct PodMetrics {
    http: Mutex<BTreeMap<Arc<str>, Arc<HttpMetrics>>>,
    tcp: Mutex<BTreeMap<Arc<str>, Arc<TcpMetrics>>>,
    counters: Mutex<BTreeMap<(Family, Arc<str>), Arc<Counter>>>,
}

/// Families that are plain counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    InboundHttpErrors,
    InboundTcpErrors,
    OutboundHttpErrors,
    OutboundTcpErrors,
    InboundHttpAuthzAllow,
    InboundHttpAuthzDeny,
    InboundHttpRouteNotFound,
    InboundTcpAuthzAllow,
    InboundTcpAuthzDeny,
    InboundTcpAuthzTerminate,
}

impl PodMetrics {
    /// Requests to an endpoint.
    pub fn outbound_http(&self, labels: &OutboundLabels) -> Arc<HttpMetrics> {
        let mut text = Labels::default();
        text.push("direction", "outbound").outbound(labels);
        Arc::clone(self.http.lock().entry(text.into_text()).or_default())
    }

    /// Requests that the pod gets.
    pub fn inbound_http(&self, labels: &InboundLabels) -> Arc<HttpMetrics> {
        let mut text = Labels::default();
        text.push("direction", "inbound").inbound(labels);
        Arc::clone(self.http.lock().entry(text.into_text()).or_default())
    }

    /// Connections.
    pub fn tcp(&self, labels: &TcpLabels) -> Arc<TcpMetrics> {
        let mut text = Labels::default();
        text.tcp(labels);
        Arc::clone(self.tcp.lock().entry(text.into_text()).or_default())
    }

    /// `inbound_http_authz_allow_total`: requests that were let pass.
    pub fn http_authz_allow(&self, labels: &InboundLabels) -> Arc<Counter> {
        self.counter(Family::InboundHttpAuthzAllow, |text| {
            text.target(labels.target)
                .server(&labels.server)
                .route(&labels.route)
                .authz(&labels.authz)
                .server_tls(&labels.tls);
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
                .server_tls(tls);
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
            text.target(target).server(server).server_tls(tls);
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
                .server_tls(tls);
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
            text.target(target).server(server).server_tls(tls);
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
            text.target(target).server(server).server_tls(tls);
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
            text.push("error", error).target(target).server(server);
        })
        .increment();
    }

    /// `inbound_tcp_errors_total`; `error` as for HTTP.
    pub fn inbound_tcp_error(&self, error: &'static str, target: SocketAddr) {
        self.counter(Family::InboundTcpErrors, |text| {
            text.push("error", error).target(target);
        })
        .increment();
    }

    /// `outbound_http_errors_total`; `error` from the set of `failfast`, `loadshed`,
    /// `identity required`, `i/o`, `response timeout`, `unexpected`.
    pub fn outbound_http_error(&self, error: &'static str) {
        self.counter(Family::OutboundHttpErrors, |text| {
            text.push("error", error);
        })
        .increment();
    }

    /// `outbound_tcp_errors_total`; `error` as for HTTP.
    pub fn outbound_tcp_error(&self, error: &'static str, target: SocketAddr) {
        self.counter(Family::OutboundTcpErrors, |text| {
            text.target(target).push("error", error);
        })
        .increment();
    }

    fn counter(&self, family: Family, labels: impl FnOnce(&mut Labels)) -> Arc<Counter> {
        let mut text = Labels::default();
        labels(&mut text);
        let mut counters = self.counters.lock();
        Arc::clone(counters.entry((family, text.into_text())).or_default())
    }
}
