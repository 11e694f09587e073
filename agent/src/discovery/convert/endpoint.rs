//! One endpoint of a set.

use std::{collections::HashMap, sync::Arc};

use linkerd2_proxy_api::destination::{
    TlsIdentity, WeightedAddr, protocol_hint::Protocol, tls_identity::Strategy,
};
use weft_api::model::Identity;

use super::{Invalid, address, authority, invalid, port};
use crate::{
    discovery::model::{DstLabels, Endpoint, Hint},
    tls::ServerId,
};

/// Makes an endpoint of an address and the labels of its set. The weight is not used: Linkerd's
/// balancer ignores it as well.
///
/// # Errors
/// When a part cannot be understood. That includes the identity: an endpoint that has one is
/// never dialled without it, so one that has an unusable one is not dialled at all.
pub(in crate::discovery) fn endpoint(
    addr: WeightedAddr,
    set_labels: &HashMap<String, String>,
) -> Result<Endpoint, Invalid> {
    let tls = addr.tls_identity.map(server_id).transpose()?;
    let hint = addr.protocol_hint.unwrap_or_default();
    let transport_port = match hint.opaque_transport {
        Some(transport) if transport.inbound_port != 0 => Some(port(
            "opaque_transport.inbound_port",
            transport.inbound_port,
        )?),
        _ => None,
    };
    let authority_override = match addr.authority_override {
        Some(over) if !over.authority_override.is_empty() => {
            Some(authority("authority_override", over.authority_override)?)
        }
        _ => None,
    };
    Ok(Endpoint {
        addr: address(addr.addr.ok_or(Invalid::Missing("addr"))?)?,
        tls,
        hint: match hint.protocol {
            None => Hint::None,
            Some(Protocol::H2(_)) => Hint::H2,
            Some(Protocol::Opaque(_)) => Hint::Opaque,
        },
        transport_port,
        authority_override,
        labels: labels(set_labels, &addr.metric_labels),
        load: Arc::default(),
    })
}

fn server_id(tls: TlsIdentity) -> Result<ServerId, Invalid> {
    let server_name = tls.server_name.map(|name| name.name);
    let (name, dns) = match tls
        .strategy
        .ok_or(Invalid::Missing("tls_identity.strategy"))?
    {
        Strategy::DnsLikeIdentity(identity) => (identity.name, true),
        Strategy::UriLikeIdentity(identity) => (identity.uri, false),
    };
    let identity: Identity = name
        .parse()
        .map_err(|_error| invalid("tls_identity", &name))?;
    let server_name = match server_name {
        Some(name) => name,
        None if dns => name,
        None => return Err(Invalid::Missing("tls_identity.server_name")),
    };
    match server_name.parse() {
        Ok(Identity::Dns(server_name)) => Ok(ServerId {
            identity,
            server_name,
        }),
        _ => Err(invalid("tls_identity.server_name", server_name)),
    }
}

/// Labels of set and address, the latter's first choice, sorted by key as Linkerd does.
fn labels(set: &HashMap<String, String>, addr: &HashMap<String, String>) -> DstLabels {
    let mut all: Vec<_> = set
        .iter()
        .filter(|(key, _)| !addr.contains_key(*key))
        .chain(addr)
        .filter(|(key, _)| is_label(key))
        .map(|(key, value)| (format!("dst_{key}").into(), value.as_str().into()))
        .collect();
    all.sort_unstable();
    all.into()
}

/// Whether a key can stand in a label's name; others would spoil the whole page of metrics.
fn is_label(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
