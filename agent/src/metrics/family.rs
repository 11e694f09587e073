//! The families of Linkerd's own formatter: names, types and help texts.

/// Families that are plain counters with labels of their own, in the order of the document.
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
    SeriesDropped,
}

/// How a family is announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// Type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    /// A counter whose head carries the name without `_total` in both dialects, as
    /// prometheus-client writes it.
    BaseCounter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Counter | Self::BaseCounter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Family {
    /// All of them, in the order of the document.
    pub(super) const ALL: [Self; 11] = [
        Self::InboundHttpErrors,
        Self::InboundTcpErrors,
        Self::OutboundHttpErrors,
        Self::OutboundTcpErrors,
        Self::InboundHttpAuthzAllow,
        Self::InboundHttpAuthzDeny,
        Self::InboundHttpRouteNotFound,
        Self::InboundTcpAuthzAllow,
        Self::InboundTcpAuthzDeny,
        Self::InboundTcpAuthzTerminate,
        Self::SeriesDropped,
    ];

    /// How it is announced.
    pub(super) const fn head(self) -> Head {
        let (name, help) = match self {
            Self::InboundHttpErrors => (
                "inbound_http_errors_total",
                "The total number of inbound HTTP requests that could not be processed due to a proxy error.",
            ),
            Self::InboundTcpErrors => (
                "inbound_tcp_errors_total",
                "The total number of inbound TCP connections that could not be processed due to a proxy error.",
            ),
            Self::OutboundHttpErrors => (
                "outbound_http_errors_total",
                "The total number of outbound HTTP requests that could not be processed due to a proxy error.",
            ),
            Self::OutboundTcpErrors => (
                "outbound_tcp_errors_total",
                "The total number of outbound TCP connections that could not be processed due to a proxy error.",
            ),
            Self::InboundHttpAuthzAllow => (
                "inbound_http_authz_allow_total",
                "The total number of inbound HTTP requests that were authorized",
            ),
            Self::InboundHttpAuthzDeny => (
                "inbound_http_authz_deny_total",
                "The total number of inbound HTTP requests that could not be processed due to being denied by policy",
            ),
            Self::InboundHttpRouteNotFound => (
                "inbound_http_route_not_found_total",
                "The total number of inbound HTTP requests that could not be associated with a route",
            ),
            Self::InboundTcpAuthzAllow => (
                "inbound_tcp_authz_allow_total",
                "The total number of inbound TCP connections that were authorized",
            ),
            Self::InboundTcpAuthzDeny => (
                "inbound_tcp_authz_deny_total",
                "The total number of inbound TCP connections that were denied",
            ),
            Self::InboundTcpAuthzTerminate => (
                "inbound_tcp_authz_terminate_total",
                "The total number of inbound TCP connections that were terminated due to an authorization change",
            ),
            Self::SeriesDropped => (
                "weft_metrics_series_dropped_total",
                "Sets of labels that are not counted because the pod has too many",
            ),
        };
        Head::counter(name, help)
    }
}

impl Head {
    pub(super) const fn counter(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Counter,
            help,
        }
    }

    pub(super) const fn base_counter(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind: Kind::BaseCounter,
            help,
        }
    }

    pub(super) const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Gauge,
            help,
        }
    }

    pub(super) const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Histogram,
            help,
        }
    }
}
