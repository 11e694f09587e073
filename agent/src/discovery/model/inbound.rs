//! Who may reach a port of a pod.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{Meta, Protocol};

/// How to treat connections to one port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundServer {
    /// What the bytes are.
    pub protocol: Protocol,
    /// How long to look for the first bytes when `protocol` is to be detected.
    pub detect_timeout: Duration,
    /// The Server or default policy; `meta.port` is the pod's port.
    pub meta: Meta,
    /// Who may connect. Valid for every route; the pod itself (`localhost`) is the last entry.
    pub authorizations: Arc<[Authorization]>,
    /// HTTP routes in order of preference; never empty for HTTP.
    pub routes: Arc<[InboundRoute]>,
}

/// One permission: a network AND an authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Which policy says so.
    pub meta: Meta,
    /// The client's address has to be in one of them.
    pub networks: Vec<NetworkMatch>,
    /// What the client has to prove.
    pub authentication: Authentication,
}

/// A network with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkMatch {
    /// Addresses that match,
    pub net: IpNet,
    /// except these.
    pub except: Vec<IpNet>,
}

/// What a client has to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing.
    Unauthenticated,
    /// Mesh TLS, with or without an identity.
    TlsUnauthenticated,
    /// An identity: one of `exact`, or a DNS-like one below one of `suffixes`.
    Identities {
        /// Whole identities.
        exact: Vec<Arc<str>>,
        /// Suffixes without leading dot, lower case; the empty one matches every identity.
        suffixes: Vec<Arc<str>>,
    },
}

/// A route of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRoute {
    /// Which object says so; `default` or `probe` if none.
    pub meta: Meta,
    /// Requests it is for; any of them. Empty matches every request.
    pub matches: Vec<MethodAndPath>,
    /// Who may use it, besides the server's own authorizations.
    pub authorizations: Arc<[Authorization]>,
}

/// What a request has to look like. Parts that are `None` match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MethodAndPath {
    /// The method.
    pub method: Option<http::Method>,
    /// The path.
    pub path: Option<PathMatch>,
}

/// What a path has to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Equal or below, by whole segments.
    Prefix(Arc<str>),
}
