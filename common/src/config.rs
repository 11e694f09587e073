//! What all programs share, in one slot of an array.

/// Most different levels at which pods' cgroups may lie.
pub const LEVELS: usize = 4;

/// Contents of [`crate::names::SETTINGS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    mark: u32,
    mask: u32,
    levels: [u32; LEVELS],
    event_interval_ns: u64,
}

const _: () = assert!(size_of::<Settings>() == 32 && align_of::<Settings>() == 8);

impl Settings {
    /// The steering mark, if nothing else is chosen. One bit, so that other users of marks keep
    /// theirs; high, because low bits are taken by container networks (Cilium, Calico, kube-proxy).
    pub const MARK: u32 = 0x0010_0000;

    /// Settings with a steering mark of one or more bits, and no cgroup levels.
    pub const fn new(mark: u32, mask: u32) -> Self {
        // A busy pod reports ten times per second; the counters count everything.
        Self {
            mark,
            mask,
            levels: [0; LEVELS],
            event_interval_ns: 100_000_000,
        }
    }

    /// The same with other cgroup levels; unused ones are 0.
    #[must_use]
    pub const fn with_levels(self, levels: [u32; LEVELS]) -> Self {
        Self { levels, ..self }
    }

    /// The same with another shortest time between two reports about one pod.
    #[must_use]
    pub const fn with_event_interval_ns(self, event_interval_ns: u64) -> Self {
        Self {
            event_interval_ns,
            ..self
        }
    }

    /// The bits that mean "steer to the outbound listener".
    #[inline]
    pub const fn mark(&self) -> u32 {
        self.mark
    }

    /// The bits of a mark that are ours.
    #[inline]
    pub const fn mask(&self) -> u32 {
        self.mask
    }

    /// Levels below the cgroup root at which pods' cgroups lie; 0 means unused.
    #[inline]
    pub const fn levels(&self) -> &[u32; LEVELS] {
        &self.levels
    }

    /// Shortest time between two reports about one pod.
    #[inline]
    pub const fn event_interval_ns(&self) -> u64 {
        self.event_interval_ns
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(Self::MARK, Self::MARK)
    }
}
