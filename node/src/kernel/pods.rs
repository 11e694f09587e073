//! What the kernel side does for one pod.

use std::os::fd::{AsFd, BorrowedFd};

use weft_common::{MAX_PODS, PodEntry, PodFlags, names};

use super::{
    Events, Guard, Kernel, KernelError, ListenerSlot, PodKernel, Reason, Skips,
    links::{self, Link},
    loader,
    sys::{Hook, Target},
};

/// A pod that the kernel side knows, maybe from an earlier process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Cookie of the pod's network namespace.
    pub cookie: u64,
    /// The pod's slot.
    pub slot: u32,
    /// Whether its connections are captured.
    pub enrolled: bool,
    /// What the guard does.
    pub guard: Guard,
}

impl Kernel {
    /// Enters the pod, or replaces what is known of it. The guard works from here on. Capture stays
    /// as it was if the pod is known with the same slot, and is off otherwise.
    ///
    /// # Errors
    /// When the map is full, or a number cannot be used.
    pub fn add_pod(&self, pod: &PodKernel<'_>) -> Result<(), KernelError> {
        if pod.slot >= MAX_PODS {
            return Err(KernelError::Invalid {
                what: "slot",
                value: pod.slot.to_string(),
            });
        }
        let mut maps = self.maps.lock();
        let enrolled = maps
            .pod(pod.cookie)?
            .filter(|known| known.slot() == pod.slot)
            .is_some_and(|known| known.flags().contains(PodFlags::ENROLLED));
        let flags = with_enrolled(with_guard(PodFlags::empty(), pod.guard), enrolled);
        let entry = PodEntry::new(flags, pod.slot, pod.inbound_port, pod.admin_port);
        maps.set_pod(pod.cookie, entry)?;
        match pod.cgroup {
            Some(cgroup) => maps.set_cgroup(pod.cookie, cgroup),
            None => Ok(()),
        }
    }

    /// Switches capture and inbound steering of the pod.
    ///
    /// # Errors
    /// When the pod is not known.
    pub fn set_enrolled(&self, cookie: u64, enrolled: bool) -> Result<(), KernelError> {
        self.maps
            .lock()
            .change_flags(cookie, |flags| with_enrolled(flags, enrolled))
    }

    /// Changes what the guard does with what evades capture.
    ///
    /// # Errors
    /// When the pod is not known.
    pub fn set_guard(&self, cookie: u64, guard: Guard) -> Result<(), KernelError> {
        self.maps
            .lock()
            .change_flags(cookie, |flags| with_guard(flags, guard))
    }

    /// Forgets the pod: its entry, skips, cgroup and listeners. Links stay: see
    /// [`Kernel::detach`]. A pod that is not known is fine.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn remove_pod(&self, cookie: u64, slot: u32) -> Result<(), KernelError> {
        let mut maps = self.maps.lock();
        maps.remove_pod(cookie)?;
        maps.clear_listeners(slot)
    }

    /// Replaces what is not captured for the pod, its own addresses included.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_skips(&self, cookie: u64, skips: &Skips) -> Result<(), KernelError> {
        self.maps.lock().set_skips(cookie, skips)
    }

    /// Puts the listening socket in its place, where steering finds it. The place does not keep the
    /// socket alive.
    ///
    /// # Errors
    /// When the socket is not a listening TCP socket.
    pub fn set_listener(
        &self,
        slot: u32,
        which: ListenerSlot,
        listener: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        self.maps.lock().set_listener(slot, which, listener)
    }

    /// Empties the places of the slot: connections are held from here on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn clear_listeners(&self, slot: u32) -> Result<(), KernelError> {
        self.maps.lock().clear_listeners(slot)
    }

    /// `SO_COOKIE` of the listener in the place; none when it is empty or its listener is closed.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn listener_cookie(
        &self,
        slot: u32,
        which: ListenerSlot,
    ) -> Result<Option<u64>, KernelError> {
        self.maps.lock().listener(slot, which)
    }

    /// Tags the socket as lent: what it, or a socket accepted from it, connects to is not captured
    /// and not guarded.
    ///
    /// # Errors
    /// When the file descriptor is no socket.
    pub fn tag_lent(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.maps.lock().tag_lent(socket)
    }

    /// Attaches outbound steering to the pod's network namespace. Again is fine; an older program
    /// is swapped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_outbound(
        &self,
        uid: &str,
        slot: u32,
        cookie: u64,
        netns: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        let wanted = (self.outbound_link(uid, slot, cookie)?, Target::Fd(netns));
        let program = names::STEER_OUTBOUND;
        self.attach(uid, wanted, (program, self.tags.outbound), (cookie, slot))
    }

    /// Attaches inbound steering to an interface. Again is fine; an older program is swapped. Call
    /// it on a thread that is in the pod's network namespace.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn attach_inbound(
        &self,
        uid: &str,
        slot: u32,
        cookie: u64,
        ifindex: u32,
    ) -> Result<(), KernelError> {
        let wanted = (
            self.inbound_link(uid, slot, cookie, ifindex)?,
            Target::Interface(ifindex),
        );
        let program = names::STEER_INBOUND;
        self.attach(uid, wanted, (program, self.tags.inbound), (cookie, slot))
    }

    fn attach(
        &self,
        uid: &str,
        (link, target): (Link, Target<'_>),
        (program, tag): (&'static str, [u8; 8]),
        pod: (u64, u32),
    ) -> Result<(), KernelError> {
        // Cookie and slot are in the pin's name, so the same tag means the same program.
        if link.attached_tag()? == Some(tag) {
            return Ok(());
        }
        links::make_directory(&self.paths.pods.join(name(uid)?))?;
        let mut object = self.template.load(pod)?;
        link.ensure(loader::load_program(&mut object, program)?.as_fd(), target)
    }

    /// Detaches everything of the pod and removes its pins. Works when the pod is gone; a pod that
    /// is not known is fine.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&self, uid: &str) -> Result<(), KernelError> {
        links::remove_all(&self.paths.pods.join(name(uid)?))
    }

    /// Pods in the map, for adoption after a restart.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn known_pods(&self) -> Result<Vec<KnownPod>, KernelError> {
        let known = |(cookie, entry): (u64, PodEntry)| KnownPod {
            cookie,
            slot: entry.slot(),
            enrolled: entry.flags().contains(PodFlags::ENROLLED),
            guard: guard(entry.flags()),
        };
        Ok(self.maps.lock().pods()?.into_iter().map(known).collect())
    }

    /// Uids of the pods that have pinned links, for adoption and clean-up after a restart.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pinned_pods(&self) -> Result<Vec<String>, KernelError> {
        links::entries(&self.paths.pods)
    }

    /// How often each reason was the answer since the maps were made.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, KernelError> {
        self.maps.lock().counters()
    }

    /// The guard's reports, for one reader. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the ring buffer cannot be opened.
    pub fn events(&self) -> Result<Events, KernelError> {
        Events::open(&self.paths.maps)
    }

    /// The link that outbound steering should have. The cookie in its pin's name names the
    /// namespace, so any that is alive is the right one.
    pub(super) fn outbound_link(
        &self,
        uid: &str,
        slot: u32,
        cookie: u64,
    ) -> Result<Link, KernelError> {
        let pin = self
            .paths
            .pods
            .join(name(uid)?)
            .join(format!("outbound-{cookie}-{slot}"));
        Ok(Link {
            pin,
            hook: Hook::SkLookup,
            target_id: None,
        })
    }

    /// The link that inbound steering should have on the interface.
    pub(super) fn inbound_link(
        &self,
        uid: &str,
        slot: u32,
        cookie: u64,
        ifindex: u32,
    ) -> Result<Link, KernelError> {
        let file = format!("inbound-{ifindex}-{cookie}-{slot}");
        let pin = self.paths.pods.join(name(uid)?).join(file);
        Ok(Link {
            pin,
            hook: Hook::TcxIngress,
            target_id: Some(ifindex.into()),
        })
    }
}

/// The uid as the name of a directory.
fn name(uid: &str) -> Result<&str, KernelError> {
    // bpffs takes no names with a dot.
    match uid.is_empty() || uid.contains(['/', '.']) {
        true => Err(KernelError::Invalid {
            what: "uid of a pod",
            value: uid.to_owned(),
        }),
        false => Ok(uid),
    }
}

fn with_enrolled(flags: PodFlags, enrolled: bool) -> PodFlags {
    match enrolled {
        true => flags.with(PodFlags::ENROLLED),
        false => flags.without(PodFlags::ENROLLED),
    }
}

fn with_guard(flags: PodFlags, guard: Guard) -> PodFlags {
    let off = flags
        .without(PodFlags::GUARD_AUDIT)
        .without(PodFlags::GUARD_ENFORCE);
    match guard {
        Guard::Off => off,
        Guard::Audit => off.with(PodFlags::GUARD_AUDIT),
        Guard::Enforce => off
            .with(PodFlags::GUARD_AUDIT)
            .with(PodFlags::GUARD_ENFORCE),
    }
}

fn guard(flags: PodFlags) -> Guard {
    match (
        flags.contains(PodFlags::GUARD_ENFORCE),
        flags.contains(PodFlags::GUARD_AUDIT),
    ) {
        (true, _) => Guard::Enforce,
        (false, true) => Guard::Audit,
        (false, false) => Guard::Off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_modes_survive_the_flags_and_leave_enrolment_alone() {
        for mode in [Guard::Off, Guard::Audit, Guard::Enforce] {
            let flags = with_guard(PodFlags::ENROLLED.with(PodFlags::GUARD_ENFORCE), mode);
            assert_eq!(guard(flags), mode);
            assert!(flags.contains(PodFlags::ENROLLED), "{mode:?}");
        }
    }

    #[test]
    fn uids_that_are_no_file_names_are_refused() {
        for (uid, fine) in [("0a-1b", true), ("", false), ("..", false), ("a/b", false)] {
            assert_eq!(name(uid).is_ok(), fine, "{uid:?}");
        }
    }
}
