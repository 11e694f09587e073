//! Between the protocol's messages and this daemon's types.

use std::net::IpAddr;

use weft_api::proto::{
    lend::{self as proto, to_agent},
    node::Pod,
};

use crate::pods::sockets::{Family, Kind};

/// Version of the protocol that is spoken here.
pub(super) const VERSION: u32 = 1;

impl From<Kind> for proto::Listener {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::OutboundV4 => Self::OutboundV4,
            Kind::OutboundV6 => Self::OutboundV6,
            Kind::InboundV4 => Self::InboundV4,
            Kind::InboundV6 => Self::InboundV6,
            Kind::AdminV4 => Self::AdminV4,
            Kind::AdminV6 => Self::AdminV6,
        }
    }
}

/// The kind of a listener named in a message; `None` for one that this version does not know.
pub(super) fn kind(listener: proto::Listener) -> Option<Kind> {
    Some(match listener {
        proto::Listener::Unspecified => return None,
        proto::Listener::OutboundV4 => Kind::OutboundV4,
        proto::Listener::OutboundV6 => Kind::OutboundV6,
        proto::Listener::InboundV4 => Kind::InboundV4,
        proto::Listener::InboundV6 => Kind::InboundV6,
        proto::Listener::AdminV4 => Kind::AdminV4,
        proto::Listener::AdminV6 => Kind::AdminV6,
    })
}

/// The family named in a message.
pub(super) const fn family(family: proto::Family) -> Option<Family> {
    match family {
        proto::Family::Unspecified => None,
        proto::Family::V4 => Some(Family::V4),
        proto::Family::V6 => Some(Family::V6),
    }
}

/// `PodAdded` for a pod with these listeners.
pub(super) fn pod_added(pod: Pod, kinds: &[Kind], ips: &[IpAddr]) -> to_agent::Message {
    to_agent::Message::PodAdded(proto::PodAdded {
        pod: Some(pod),
        listeners: kinds
            .iter()
            .map(|kind| proto::Listener::from(*kind).into())
            .collect(),
        ips: ips.iter().map(ToString::to_string).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_listener_survives_the_wire() {
        for expected in Kind::ALL {
            assert_eq!(kind(expected.into()), Some(expected));
        }
        assert_eq!(kind(proto::Listener::Unspecified), None);
    }
}
