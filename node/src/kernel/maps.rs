//! The maps, typed, and what is entered in them for a pod.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap as BpfHashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage,
        lpm_trie::Key,
    },
};
use ipnet::IpNet;
use weft_common::{
    Addr, Direction, LEVELS, ListenerSlot, MAX_PODS, NET_SKIPPED, NET_UNKNOWN, OWN_ADDRESS,
    PodEntry, PodFlags, REASONS, Reason, Settings, SkipNet, SkipPort, names, port_prefixes,
};

use super::{KernelError, Skips, sys};

/// Key sizes, value sizes and lengths of the maps that are adopted.
const SHAPES: [(&str, u32, u32, u32); 7] = [
    (names::PODS, 8, 16, MAX_PODS),
    (names::LISTENERS, 4, 8, MAX_PODS * 4),
    (names::LENT, 4, 4, 0),
    (names::SKIP_PORTS, 16, 4, MAX_PODS * 32),
    (names::SKIP_NETS, 36, 4, MAX_PODS * 32),
    (names::CGROUPS, 8, 8, MAX_PODS),
    (names::SETTINGS, 4, 32, 1),
];

/// The maps of this node.
pub(super) struct Maps {
    pods: BpfHashMap<MapData, u64, PodEntry>,
    listeners: MapData,
    lent: SkStorage<MapData, u32>,
    skip_ports: LpmTrie<MapData, SkipPort, u32>,
    skip_nets: LpmTrie<MapData, SkipNet, u32>,
    cgroups: BpfHashMap<MapData, u64, u64>,
    counters: PerCpuArray<MapData, u64>,
    settings: Array<MapData, Settings>,
    /// What the skip maps hold, by pod, so that replacing needs no walk through them.
    entered: HashMap<u64, Entered>,
}

#[derive(Default)]
struct Entered {
    ports: HashSet<(u32, SkipPort)>,
    nets: HashMap<(u32, SkipNet), u32>,
}

fn failed(action: &'static str, map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map {
        action,
        map,
        source: Box::new(source),
    }
}

fn taken<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    object
        .take_map(name)
        .ok_or_else(|| KernelError::Invalid {
            what: "eBPF object",
            value: name.to_owned(),
        })
        .and_then(|map| T::try_from(map).map_err(failed("open", name)))
}

impl Maps {
    /// Takes the maps out of the loaded object, after a look at their shape.
    pub(super) fn take(object: &mut Ebpf, pins: &Path) -> Result<Self, KernelError> {
        for (map, key, value, entries) in SHAPES {
            let info = aya::maps::MapInfo::from_pin(pins.join(map)).map_err(failed("open", map))?;
            if (info.key_size(), info.value_size(), info.max_entries()) != (key, value, entries) {
                return Err(KernelError::MapDiffers {
                    map,
                    path: pins.to_owned(),
                });
            }
        }
        let Some(Map::SockMap(listeners)) = object.take_map(names::LISTENERS) else {
            return Err(KernelError::Invalid {
                what: "eBPF object",
                value: names::LISTENERS.to_owned(),
            });
        };
        let mut maps = Self {
            pods: taken(object, names::PODS)?,
            listeners,
            lent: taken(object, names::LENT)?,
            skip_ports: taken(object, names::SKIP_PORTS)?,
            skip_nets: taken(object, names::SKIP_NETS)?,
            cgroups: taken(object, names::CGROUPS)?,
            counters: taken(object, names::COUNTERS)?,
            settings: taken(object, names::SETTINGS)?,
            entered: HashMap::new(),
        };
        maps.read_entered()?;
        Ok(maps)
    }

    /// Reads what an earlier process entered in the skip maps.
    fn read_entered(&mut self) -> Result<(), KernelError> {
        for key in self.skip_ports.keys() {
            let key = key.map_err(failed("read", names::SKIP_PORTS))?;
            let entered = self.entered.entry(key.data().cookie()).or_default();
            entered.ports.insert((key.prefix_len(), key.data()));
        }
        for entry in self.skip_nets.iter() {
            let (key, meaning) = entry.map_err(failed("read", names::SKIP_NETS))?;
            let entered = self.entered.entry(key.data().cookie()).or_default();
            entered.nets.insert((key.prefix_len(), key.data()), meaning);
        }
        Ok(())
    }

    /// Writes the settings; levels that were learnt before stay.
    pub(super) fn write_settings(&mut self, settings: Settings) -> Result<(), KernelError> {
        let known = self
            .settings
            .get(&0, 0)
            .map_err(failed("read", names::SETTINGS))?;
        self.settings
            .set(0, settings.with_levels(*known.levels()), 0)
            .map_err(failed("write", names::SETTINGS))
    }

    /// The pod's entry.
    pub(super) fn pod(&self, cookie: u64) -> Result<Option<PodEntry>, KernelError> {
        match self.pods.get(&cookie, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("read", names::PODS)(error)),
        }
    }

    /// Enters or replaces the pod.
    pub(super) fn set_pod(&mut self, cookie: u64, entry: PodEntry) -> Result<(), KernelError> {
        self.pods
            .insert(cookie, entry, 0)
            .map_err(failed("write", names::PODS))
    }

    /// Changes the switches of a pod.
    pub(super) fn change_flags(
        &mut self,
        cookie: u64,
        change: impl FnOnce(PodFlags) -> PodFlags,
    ) -> Result<(), KernelError> {
        let entry = self
            .pod(cookie)?
            .ok_or(KernelError::UnknownPod { cookie })?;
        self.set_pod(cookie, entry.with_flags(change(entry.flags())))
    }

    /// All pods.
    pub(super) fn pods(&self) -> Result<Vec<(u64, PodEntry)>, KernelError> {
        self.pods
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed("read", names::PODS))
    }

    /// Removes the pod and what is known of it, except its listeners.
    pub(super) fn remove_pod(&mut self, cookie: u64) -> Result<(), KernelError> {
        absent_is_fine(self.pods.remove(&cookie), "write", names::PODS)?;
        let cgroups: Vec<_> = self
            .cgroups
            .iter()
            .filter_map(Result::ok)
            .filter_map(|(cgroup, of)| (of == cookie).then_some(cgroup))
            .collect();
        for cgroup in cgroups {
            absent_is_fine(self.cgroups.remove(&cgroup), "write", names::CGROUPS)?;
        }
        self.enter(cookie, Entered::default())
    }

    /// Makes the guard see what leaves from namespaces inside the pod.
    pub(super) fn set_cgroup(
        &mut self,
        cookie: u64,
        (cgroup, level): (u64, u32),
    ) -> Result<(), KernelError> {
        let settings = self
            .settings
            .get(&0, 0)
            .map_err(failed("read", names::SETTINGS))?;
        if let Some(levels) = with_level(*settings.levels(), level)? {
            self.settings
                .set(0, settings.with_levels(levels), 0)
                .map_err(failed("write", names::SETTINGS))?;
        }
        self.cgroups
            .insert(cgroup, cookie, 0)
            .map_err(failed("write", names::CGROUPS))
    }

    /// Replaces what is not captured for the pod.
    pub(super) fn set_skips(&mut self, cookie: u64, skips: &Skips) -> Result<(), KernelError> {
        self.enter(cookie, wanted(cookie, skips))
    }

    /// New entries go in before old ones go out, so that what stays is never missing.
    fn enter(&mut self, cookie: u64, wanted: Entered) -> Result<(), KernelError> {
        let old = self.entered.remove(&cookie).unwrap_or_default();
        for &(length, port) in wanted.ports.difference(&old.ports) {
            self.skip_ports
                .insert(&Key::new(length, port), 1, 0)
                .map_err(failed("write", names::SKIP_PORTS))?;
        }
        for (&(length, net), &meaning) in &wanted.nets {
            if old.nets.get(&(length, net)) != Some(&meaning) {
                self.skip_nets
                    .insert(&Key::new(length, net), meaning, 0)
                    .map_err(failed("write", names::SKIP_NETS))?;
            }
        }
        for &(length, port) in old.ports.difference(&wanted.ports) {
            let removed = self.skip_ports.remove(&Key::new(length, port));
            absent_is_fine(removed, "write", names::SKIP_PORTS)?;
        }
        for &(length, net) in old
            .nets
            .keys()
            .filter(|key| !wanted.nets.contains_key(*key))
        {
            let removed = self.skip_nets.remove(&Key::new(length, net));
            absent_is_fine(removed, "write", names::SKIP_NETS)?;
        }
        if !wanted.ports.is_empty() || !wanted.nets.is_empty() {
            self.entered.insert(cookie, wanted);
        }
        Ok(())
    }

    /// Tags the socket as lent.
    pub(super) fn tag_lent(&mut self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.lent
            .insert(&socket, 1, 0)
            .map_err(failed("write", names::LENT))
    }

    /// Puts the listener in its place.
    pub(super) fn set_listener(
        &self,
        slot: u32,
        which: ListenerSlot,
        listener: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        sys::socket_set(self.listeners.fd().as_fd(), which.index(slot), listener)
            .map_err(socket_failed("write"))
    }

    /// Cookie of the listener in the place.
    pub(super) fn listener(
        &self,
        slot: u32,
        which: ListenerSlot,
    ) -> Result<Option<u64>, KernelError> {
        sys::socket_cookie(self.listeners.fd().as_fd(), which.index(slot))
            .map_err(socket_failed("read"))
    }

    /// Empties the places of the slot.
    pub(super) fn clear_listeners(&self, slot: u32) -> Result<(), KernelError> {
        ListenerSlot::ALL.into_iter().try_for_each(|which| {
            sys::socket_clear(self.listeners.fd().as_fd(), which.index(slot))
                .map_err(socket_failed("write"))
        })
    }

    /// How often each reason was the answer, over all CPUs.
    pub(super) fn counters(&self) -> Result<Vec<(Reason, u64)>, KernelError> {
        (0..)
            .zip(Reason::ALL)
            .take(REASONS)
            .try_fold(Vec::new(), |mut all, (number, reason)| {
                let counts = self
                    .counters
                    .get(&number, 0)
                    .map_err(failed("read", names::COUNTERS))?;
                all.push((*reason, counts.iter().sum()));
                Ok(all)
            })
    }
}

fn socket_failed(action: &'static str) -> impl Fn(std::io::Error) -> KernelError {
    move |source| KernelError::Socket {
        action,
        map: names::LISTENERS,
        source,
    }
}

fn absent_is_fine(
    result: Result<(), MapError>,
    action: &'static str,
    map: &'static str,
) -> Result<(), KernelError> {
    match result {
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        result => result.map_err(failed(action, map)),
    }
}

/// The levels with one more; none when it is there already.
fn with_level(mut levels: [u32; LEVELS], level: u32) -> Result<Option<[u32; LEVELS]>, KernelError> {
    if level == 0 {
        return Err(KernelError::Invalid {
            what: "level of a pod's cgroup",
            value: "0".into(),
        });
    }
    if levels.contains(&level) {
        return Ok(None);
    }
    let free = levels
        .iter_mut()
        .find(|level| **level == 0)
        .ok_or_else(|| KernelError::Invalid {
            what: "another level of pods' cgroups",
            value: level.to_string(),
        })?;
    *free = level;
    Ok(Some(levels))
}

/// The entries that say what the settings say.
fn wanted(cookie: u64, skips: &Skips) -> Entered {
    let mut entered = Entered::default();
    for (direction, ports) in [
        (Direction::Inbound, &skips.inbound_ports),
        (Direction::Outbound, &skips.outbound_ports),
    ] {
        for (first, last) in ports.ranges() {
            entered
                .ports
                .extend(port_prefixes(first, last).map(|(port, bits)| {
                    let key = SkipPort::new(cookie, direction, port.to_be_bytes());
                    (SkipPort::prefix(bits), key)
                }));
        }
    }
    let mut net = |direction, (addr, bits): (Addr, u32), meaning: u32| {
        let key = (SkipNet::prefix(bits), SkipNet::new(cookie, direction, addr));
        entered.nets.insert(key, meaning);
    };
    let v4_is_named = skips
        .subnets
        .iter()
        .any(|net| matches!(net, IpNet::V4(v4) if v4.prefix_len() == 0));
    for subnet in &skips.subnets {
        for direction in [Direction::Inbound, Direction::Outbound] {
            net(direction, prefix(subnet), NET_SKIPPED);
            // IPv4 is mapped into IPv6, but nobody who names the latter means the former.
            if subnet.contains(&IpNet::from(MAPPED_V4)) && !v4_is_named {
                net(direction, prefix(&IpNet::from(MAPPED_V4)), NET_UNKNOWN);
            }
        }
    }
    for own in &skips.own {
        net(Direction::Outbound, (addr(*own), 128), OWN_ADDRESS);
    }
    entered
}

const MAPPED_V4: ipnet::Ipv6Net =
    ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

fn prefix(net: &IpNet) -> (Addr, u32) {
    let bits = u32::from(net.prefix_len());
    match net {
        IpNet::V4(_) => (addr(net.network()), 96 + bits),
        IpNet::V6(_) => (addr(net.network()), bits),
    }
}

/// The address as it lies in maps.
fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::from_bytes(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_become_prefixes_of_the_pod() {
        let skips = Skips {
            inbound_ports: "25".parse().unwrap(),
            outbound_ports: "4000-4003".parse().unwrap(),
            subnets: vec!["10.0.0.0/8".parse().unwrap()],
            own: vec!["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        let entered = wanted(7, &skips);
        let port = |direction, port: u16| SkipPort::new(7, direction, port.to_be_bytes());
        assert_eq!(
            entered.ports,
            HashSet::from([
                (SkipPort::FULL, port(Direction::Inbound, 25)),
                (SkipPort::prefix(14), port(Direction::Outbound, 4000)),
            ])
        );
        let net = |direction, ip: &str| SkipNet::new(7, direction, addr(ip.parse().unwrap()));
        assert_eq!(
            entered.nets,
            HashMap::from([
                (
                    (SkipNet::prefix(104), net(Direction::Inbound, "10.0.0.0")),
                    NET_SKIPPED
                ),
                (
                    (SkipNet::prefix(104), net(Direction::Outbound, "10.0.0.0")),
                    NET_SKIPPED
                ),
                (
                    (SkipNet::FULL, net(Direction::Outbound, "10.1.2.3")),
                    OWN_ADDRESS
                ),
                (
                    (SkipNet::FULL, net(Direction::Outbound, "fd00::1")),
                    OWN_ADDRESS
                ),
            ])
        );
    }

    #[test]
    fn all_of_ipv6_does_not_mean_ipv4() {
        let entered = wanted(
            7,
            &Skips {
                subnets: vec!["::/0".parse().unwrap()],
                ..Skips::default()
            },
        );
        let key = SkipNet::new(7, Direction::Outbound, addr("0.0.0.0".parse().unwrap()));
        assert_eq!(
            entered.nets.get(&(SkipNet::prefix(96), key)),
            Some(&NET_UNKNOWN)
        );
        let both = Skips {
            subnets: vec!["::/0".parse().unwrap(), "0.0.0.0/0".parse().unwrap()],
            ..Skips::default()
        };
        assert_eq!(
            wanted(7, &both).nets.get(&(SkipNet::prefix(96), key)),
            Some(&NET_SKIPPED)
        );
    }

    #[test]
    fn levels_are_learnt_until_there_is_no_place() {
        assert_eq!(with_level([0; LEVELS], 3).unwrap(), Some([3, 0, 0, 0]));
        assert_eq!(with_level([3, 0, 0, 0], 3).unwrap(), None);
        assert!(with_level([1, 2, 3, 4], 5).is_err());
        assert!(with_level([0; LEVELS], 0).is_err());
    }
}
