//! Interfaces and addresses of a pod, as the kernel has them, by rtnetlink.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkLayerType, LinkMessage},
};

use super::{
    rules::{RouteError, drive, failed},
    sockets::Family,
};

/// What a pod's namespace looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Interfaces other than lo, by index and name.
    pub interfaces: Vec<(u32, String)>,
    /// Every address on those, the main one of each family first. Link-local ones are among them.
    pub addresses: Vec<IpAddr>,
}

impl View {
    /// The address of a family that the pod speaks from, if it has one beyond its link.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family && !is_link_local(*address))
    }

    /// Families that connections can leave by.
    pub fn families(&self) -> Vec<Family> {
        [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.source(*family).is_some())
            .collect()
    }
}

/// Reads the interfaces and addresses of the namespace that the calling thread is in.
///
/// # Errors
/// When netlink fails.
pub fn look() -> Result<View, RouteError> {
    drive(async |handle| {
        let links: Vec<_> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list the pod's interfaces"))?;
        let addresses: Vec<_> = handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list the pod's addresses"))?;
        let interfaces: Vec<(u32, String)> = links
            .iter()
            .filter(|link| link.header.link_layer_type != LinkLayerType::Loopback)
            .filter_map(|link| Some((link.header.index, name(link)?)))
            .collect();
        let addresses = addresses
            .iter()
            .filter(|address| {
                interfaces
                    .iter()
                    .any(|(index, _)| *index == address.header.index)
            })
            .filter_map(usable_address)
            .collect();
        Ok(View {
            interfaces,
            addresses,
        })
    })
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            Some(name.clone())
        } else {
            None
        }
    })
}

fn usable_address(message: &AddressMessage) -> Option<IpAddr> {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed;
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            if flags.intersects(unusable) {
                return None;
            }
        } else if let AddressAttribute::Local(address) = attribute {
            local = Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            other = Some(*address);
        }
    }
    // Of a point-to-point interface, IFA_LOCAL is ours and IFA_ADDRESS is the peer's.
    local.or(other)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
