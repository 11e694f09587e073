//! Names of maps, programs and pins.

/// Which pods are enrolled, by cookie of their network namespace: `u64` → [`crate::PodEntry`].
pub const PODS: &str = "PODS";
/// The pods' listeners: [`crate::ListenerSlot::index`] → socket.
pub const LISTENERS: &str = "LISTENERS";
/// Sockets that weft-node lent to the proxy; accepted sockets inherit the entry.
pub const LENT: &str = "LENT";
/// Ports that are not captured: [`crate::SkipPort`] → anything.
pub const SKIP_PORTS: &str = "SKIP_PORTS";
/// Networks that are not captured, and pods' own addresses: [`crate::SkipNet`] → meaning.
pub const SKIP_NETS: &str = "SKIP_NETS";
/// The pod that a cgroup belongs to: cgroup id → cookie of the pod's network namespace.
pub const CGROUPS: &str = "CGROUPS";
/// How often each [`crate::Reason`] was the answer, per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// What the guard met, as [`crate::GuardRecord`].
pub const GUARD_EVENTS: &str = "GUARD_EVENTS";
/// When the guard last reported about a pod, so that one pod cannot flood the reader.
pub const GUARD_SEEN: &str = "GUARD_SEEN";
/// The one [`crate::Settings`].
pub const SETTINGS: &str = "SETTINGS";

/// Every map that is shared by all programs and pinned.
pub const MAPS: [&str; 10] = [
    PODS,
    LISTENERS,
    LENT,
    SKIP_PORTS,
    SKIP_NETS,
    CGROUPS,
    COUNTERS,
    GUARD_EVENTS,
    GUARD_SEEN,
    SETTINGS,
];

/// Marks outbound IPv4 connections (`cgroup/connect4`).
pub const CAPTURE_CONNECT4: &str = "capture_connect4";
/// Marks outbound IPv6 connections, and IPv4 ones made by IPv6 sockets (`cgroup/connect6`).
pub const CAPTURE_CONNECT6: &str = "capture_connect6";
/// Drops what leaves an enrolled pod uncaptured (`cgroup_skb/egress`).
pub const GUARD_EGRESS: &str = "guard_egress";
/// Steers marked connections to the outbound listener, and inbound ones that evade
/// [`STEER_INBOUND`] to the inbound listener (`sk_lookup`, one copy per pod).
pub const STEER_OUTBOUND: &str = "steer_outbound";
/// Steers what arrives on a pod's device to the inbound listener (`tc` ingress, one copy per pod).
pub const STEER_INBOUND: &str = "steer_inbound";

/// Every program.
pub const PROGRAMS: [&str; 5] = [
    CAPTURE_CONNECT4,
    CAPTURE_CONNECT6,
    GUARD_EGRESS,
    STEER_OUTBOUND,
    STEER_INBOUND,
];

/// Constant of the steering programs: cookie of the pod's network namespace.
pub const POD_COOKIE: &str = "POD_COOKIE";
/// Constant of the steering programs: the pod's slot.
pub const POD_SLOT: &str = "POD_SLOT";

/// Directory of the pinned maps, below the versioned root.
pub const PIN_MAPS: &str = "maps";
/// Directory of the pinned cgroup links.
pub const PIN_LINKS: &str = "links";
/// Directory of the pods' links: one directory per pod, named by its uid.
pub const PIN_PODS: &str = "pods";
