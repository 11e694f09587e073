//! What the guard reports, read from the ring buffer as it comes.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use weft_common::{Addr, GuardRecord, Port, names};

use super::{KernelError, Reason};

/// What the guard met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardEvent {
    /// Cookie of the enrolled pod's network namespace.
    pub cookie: u64,
    /// Slot of the pod.
    pub slot: u32,
    /// Whether a network namespace inside the pod sent it.
    pub nested: bool,
    /// Why.
    pub reason: Reason,
    /// Whether it was dropped; otherwise the guard only audits.
    pub dropped: bool,
    /// Where from.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// Interface it was about to leave by.
    pub ifindex: u32,
}

/// What the guard reports, as it happens.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Opens the ring buffer that is pinned in the directory.
    pub(super) fn open(maps: &Path) -> Result<Self, KernelError> {
        let map = names::GUARD_EVENTS;
        let failed = |source| KernelError::Map {
            action: "open",
            map,
            source: Box::new(source),
        };
        let data = MapData::from_pin(maps.join(map)).map_err(failed)?;
        let ring = Map::from_map_data(data)
            .and_then(RingBuf::try_from)
            .map_err(failed)?;
        // SAFETY: the ring buffer owns its file descriptor, keeps it for as long as it lives and
        // does not change it; it lives in the `AsyncFd`.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|error| reading(error.into()))?;
        Ok(Self { ring })
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// When the ring buffer cannot be waited for.
    ///
    /// # Cancel safety
    /// No event is lost when the call is given up.
    pub async fn next(&mut self) -> Result<GuardEvent, KernelError> {
        loop {
            // Looked at before waiting: readiness may have been used up by an earlier call.
            while let Some(item) = self.ring.get_mut().next() {
                if let Some(event) = GuardRecord::from_bytes(&item).and_then(event) {
                    return Ok(event);
                }
            }
            self.ring
                .readable_mut()
                .await
                .map_err(reading)?
                .clear_ready();
        }
    }
}

fn reading(source: io::Error) -> KernelError {
    KernelError::Socket {
        action: "wait for",
        map: names::GUARD_EVENTS,
        source,
    }
}

/// None when a newer program reports a reason that this version does not know.
fn event(record: GuardRecord) -> Option<GuardEvent> {
    Some(GuardEvent {
        cookie: record.cookie,
        slot: record.slot,
        nested: record.cookie != record.sender_cookie,
        reason: Reason::from_number(record.reason)?,
        dropped: record.audit == 0,
        source: socket_addr(&record.source, record.source_port),
        destination: socket_addr(&record.destination, record.destination_port),
        ifindex: record.ifindex,
    })
}

fn socket_addr(addr: &Addr, port: Port) -> SocketAddr {
    let ip = IpAddr::V6(Ipv6Addr::from(addr.bytes())).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_in_their_own_family() {
        for (addr, expected) in [
            (Addr::v4([10, 96, 0, 10]), "10.96.0.10:80"),
            (
                Addr::from_bytes([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
                "[fd00::7]:80",
            ),
        ] {
            assert_eq!(socket_addr(&addr, [0, 80]).to_string(), expected);
        }
    }
}
