//! Messages of the controller → model. Pure.
//!
//! All or nothing: a message with a part that cannot be understood is refused whole, and whoever
//! called keeps what it had. The one exception is a set of endpoints, where a bad endpoint is left
//! out and reported and the others are taken: it must not take its neighbours away.

mod endpoint;
mod inbound;
mod outbound;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use linkerd2_proxy_api::{meta, net};

pub(super) use self::{
    endpoint::endpoint,
    inbound::server,
    outbound::{Goal, Policy, Profile, policy, profile},
};
use super::model::Meta;

/// Why a message cannot be used. Names the field.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Invalid {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field holds something that cannot be.
    #[error("{field}: {value:?} is not valid")]
    Value {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
}

fn invalid(field: &'static str, value: impl std::fmt::Display) -> Invalid {
    Invalid::Value {
        field,
        value: value.to_string(),
    }
}

/// An address. The conversion of linkerd2-proxy-api cuts ports to 16 bits; this one refuses.
pub(super) fn address(address: net::TcpAddress) -> Result<SocketAddr, Invalid> {
    let port = port("addr.port", address.port)?;
    let ip = address.ip.ok_or(Invalid::Missing("addr.ip"))?;
    let ip: std::net::IpAddr = ip
        .try_into()
        .map_err(|_empty: net::InvalidIpAddress| Invalid::Missing("addr.ip.ip"))?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

fn port(field: &'static str, port: u32) -> Result<u16, Invalid> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| invalid(field, port))
}

fn duration(
    field: &'static str,
    duration: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, Invalid> {
    match duration {
        None => Ok(default),
        Some(duration) => {
            Duration::try_from(duration).map_err(|_error| invalid(field, duration.seconds))
        }
    }
}

fn metadata(metadata: Option<meta::Metadata>) -> Result<Meta, Invalid> {
    match metadata.and_then(|metadata| metadata.kind) {
        None => Err(Invalid::Missing("metadata")),
        Some(meta::metadata::Kind::Default(name)) => Ok(Meta::default_named(&name)),
        Some(meta::metadata::Kind::Resource(resource)) => Ok(Meta {
            port: match resource.port {
                0 => None,
                number => Some(port("metadata.port", number)?),
            },
            group: resource.group.into(),
            kind: resource.kind.into(),
            namespace: resource.namespace.into(),
            name: resource.name.into(),
            section: resource.section.into(),
        }),
    }
}

/// `host:port` that can stand in a request line.
fn authority(field: &'static str, text: String) -> Result<Arc<str>, Invalid> {
    match text.parse::<http::uri::Authority>() {
        Ok(authority) if !authority.host().is_empty() => Ok(text.into()),
        _ => Err(invalid(field, text)),
    }
}

#[cfg(test)]
mod tests;
