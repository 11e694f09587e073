//! Labels of the families that Linkerd's users know: which, in which order, written how.
//!
//! The order and the values are a contract with dashboards and recorded queries. A set of labels
//! is written once, when its handle is resolved, and kept as text.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
    sync::Arc,
};

use weft_api::model::Identity;

use crate::discovery::model::{DstLabels, Meta};

/// TLS of a connection that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerTls {
    /// Mesh TLS, with the client's identity if it has shown one.
    Established(Option<Identity>),
    /// No mesh TLS, and why.
    None(NoServerTls),
    /// TLS of the application's own, passed on.
    Opaque {
        /// The name that the client asked for.
        sni: Arc<str>,
    },
}

/// Why a connection that was accepted has no mesh TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoServerTls {
    /// Mesh TLS is off.
    Disabled,
    /// It comes from the pod itself.
    Loopback,
    /// The port is one where TLS is not looked for.
    PortSkipped,
    /// The client did not offer it.
    NoTlsFromRemote,
}

/// TLS of a connection that was dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientTls {
    /// Mesh TLS with this server.
    Established(Identity),
    /// No mesh TLS, and why.
    None(NoClientTls),
}

/// Why a connection that was dialled has no mesh TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoClientTls {
    /// Mesh TLS is off.
    Disabled,
    /// It goes to the pod itself.
    Loopback,
    /// The endpoint has no identity.
    NotProvidedByServiceDiscovery,
    /// Ingress mode, and the request did not say where it goes.
    IngressWithoutOverride,
}

/// The Server or default policy of an inbound port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerLabels {
    /// API group, empty for defaults.
    pub group: Arc<str>,
    /// `server` or `default`.
    pub kind: Arc<str>,
    /// Name of the Server or of the default policy.
    pub name: Arc<str>,
    /// The pod's port.
    pub port: u16,
}

/// The route that a request took.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteLabels {
    /// API group, empty for defaults.
    pub group: Arc<str>,
    /// Kind of the route.
    pub kind: Arc<str>,
    /// Name of the route.
    pub name: Arc<str>,
}

/// The authorization that let a request pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthzLabels {
    /// API group, empty for defaults.
    pub group: Arc<str>,
    /// Kind of the policy.
    pub kind: Arc<str>,
    /// Name of the policy.
    pub name: Arc<str>,
}

/// Labels of requests and connections to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutboundLabels {
    /// Service name and port, if the destination is a service.
    pub authority: Option<Arc<str>>,
    /// The endpoint.
    pub target: SocketAddr,
    /// TLS with it.
    pub tls: ClientTls,
    /// Its `dst_*` labels.
    pub dst: DstLabels,
}

/// Labels of requests that a pod gets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InboundLabels {
    /// Where the client wanted to go.
    pub target: SocketAddr,
    /// TLS with the client.
    pub tls: ServerTls,
    /// The policy of the port.
    pub server: ServerLabels,
    /// The route taken.
    pub route: RouteLabels,
    /// What let it pass.
    pub authz: AuthzLabels,
}

/// Labels of connections, by side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TcpLabels {
    /// From a client to the pod.
    InboundSource {
        /// Where the client wanted to go.
        target: SocketAddr,
        /// TLS with the client.
        tls: ServerTls,
        /// The policy of the port.
        server: ServerLabels,
    },
    /// From the proxy to the pod's application.
    InboundDestination,
    /// From the pod's application to the proxy.
    OutboundSource {
        /// Where the application wanted to go.
        target: SocketAddr,
    },
    /// From the proxy to an endpoint.
    OutboundDestination(OutboundLabels),
}

impl From<&Meta> for RouteLabels {
    fn from(meta: &Meta) -> Self {
        Self {
            group: Arc::clone(&meta.group),
            kind: Arc::clone(&meta.kind),
            name: Arc::clone(&meta.name),
        }
    }
}

impl From<&Meta> for AuthzLabels {
    fn from(meta: &Meta) -> Self {
        Self {
            group: Arc::clone(&meta.group),
            kind: Arc::clone(&meta.kind),
            name: Arc::clone(&meta.name),
        }
    }
}

impl ServerLabels {
    /// Labels of a server that serves `port`.
    pub fn new(meta: &Meta, port: u16) -> Self {
        Self {
            group: Arc::clone(&meta.group),
            kind: Arc::clone(&meta.kind),
            name: Arc::clone(&meta.name),
            port,
        }
    }
}

/// Writes `key="value"` pairs, separated by commas.
#[derive(Debug, Default)]
pub(super) struct Labels(String);

impl Labels {
    pub(super) fn push(&mut self, key: impl fmt::Display, value: impl fmt::Display) -> &mut Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _infallible = write!(self.0, "{comma}{key}=\"");
        let _infallible = write!(Escaped(&mut self.0), "{value}");
        self.0.push('"');
        self
    }

    pub(super) fn into_text(self) -> Arc<str> {
        self.0.into()
    }

    pub(super) fn target(&mut self, target: SocketAddr) -> &mut Self {
        self.push("target_addr", target)
            .push("target_ip", target.ip())
            .push("target_port", target.port())
    }

    pub(super) fn server_tls(&mut self, tls: &ServerTls) -> &mut Self {
        match tls {
            ServerTls::Established(client) => {
                let client = client.as_ref().map_or("", Identity::as_str);
                self.push("tls", "true").push("client_id", client)
            }
            ServerTls::None(NoServerTls::Disabled) => self.push("tls", "disabled"),
            ServerTls::None(reason) => self
                .push("tls", "no_identity")
                .push("no_tls_reason", reason.label()),
            ServerTls::Opaque { sni } => self.push("tls", "opaque").push("sni", sni),
        }
    }

    pub(super) fn client_tls(&mut self, tls: &ClientTls) -> &mut Self {
        match tls {
            ClientTls::Established(server) => self.push("tls", "true").push("server_id", server),
            ClientTls::None(NoClientTls::Disabled) => self.push("tls", "disabled"),
            ClientTls::None(reason) => self
                .push("tls", "no_identity")
                .push("no_tls_reason", reason.label()),
        }
    }

    pub(super) fn server(&mut self, server: &ServerLabels) -> &mut Self {
        self.push("srv_group", &server.group)
            .push("srv_kind", &server.kind)
            .push("srv_name", &server.name)
            .push("srv_port", server.port)
    }

    pub(super) fn route(&mut self, route: &RouteLabels) -> &mut Self {
        self.push("route_group", &route.group)
            .push("route_kind", &route.kind)
            .push("route_name", &route.name)
    }

    pub(super) fn authz(&mut self, authz: &AuthzLabels) -> &mut Self {
        self.push("authz_group", &authz.group)
            .push("authz_kind", &authz.kind)
            .push("authz_name", &authz.name)
    }

    pub(super) fn outbound(&mut self, labels: &OutboundLabels) -> &mut Self {
        if let Some(authority) = &labels.authority {
            self.push("authority", authority);
        }
        self.target(labels.target).client_tls(&labels.tls);
        for (key, value) in labels.dst.iter() {
            self.push(key, value);
        }
        self
    }

    pub(super) fn inbound(&mut self, labels: &InboundLabels) -> &mut Self {
        self.target(labels.target)
            .server_tls(&labels.tls)
            .server(&labels.server)
            .route(&labels.route)
            .authz(&labels.authz)
    }

    pub(super) fn tcp(&mut self, labels: &TcpLabels) -> &mut Self {
        let (direction, peer) = match labels {
            TcpLabels::InboundSource { .. } => ("inbound", "src"),
            TcpLabels::InboundDestination => ("inbound", "dst"),
            TcpLabels::OutboundSource { .. } => ("outbound", "src"),
            TcpLabels::OutboundDestination(_) => ("outbound", "dst"),
        };
        self.push("direction", direction).push("peer", peer);
        let loopback = NoServerTls::Loopback;
        match labels {
            TcpLabels::InboundSource {
                target,
                tls,
                server,
            } => self.target(*target).server_tls(tls).server(server),
            TcpLabels::InboundDestination => self.server_tls(&ServerTls::None(loopback)),
            TcpLabels::OutboundSource { target } => {
                self.target(*target).server_tls(&ServerTls::None(loopback))
            }
            TcpLabels::OutboundDestination(labels) => self.outbound(labels),
        }
    }
}

impl NoServerTls {
    const fn label(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Loopback => "loopback",
            Self::PortSkipped => "port_skipped",
            Self::NoTlsFromRemote => "no_tls_from_remote",
        }
    }
}

impl NoClientTls {
    const fn label(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Loopback => "loopback",
            Self::NotProvidedByServiceDiscovery => "not_provided_by_service_discovery",
            Self::IngressWithoutOverride => "ingress_without_override",
        }
    }
}

/// Escapes what may not stand in a label value.
struct Escaped<'text>(&'text mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                _ => self.0.push(c),
            }
        }
        Ok(())
    }
}
