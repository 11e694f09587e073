//! The guard: what leaves an enrolled pod uncaptured is dropped and reported.
//!
//! Runs for every packet that a socket below the cgroup sends, so the first questions are the
//! cheap ones: only SYNs and marked packets are looked at closely. Packets that stay on lo pass,
//! but a marked SYN waits there while the pod has no outbound listener: the kernel would refuse it.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{
        bpf_get_netns_cookie, bpf_ktime_get_boot_ns, bpf_sk_fullsock, bpf_sk_release,
        bpf_skb_ancestor_cgroup_id,
    },
    programs::SkBuffContext,
};
use weft_common::{Addr, GuardRecord, ListenerSlot, PodEntry, PodFlags, Reason, Settings};
use weft_ebpf::{
    decide::{self, Leaving},
    packet::{self, Header, Parsed, Segment},
};

use crate::{
    context::{socket, word},
    count::{Flow, Program, count},
    maps::{self, PodSkips},
    skb::Skb,
};

/// lo has this number in every network namespace.
const LO: u32 = 1;

/// What becomes of the packet.
#[must_use]
pub(crate) enum Verdict {
    /// It leaves.
    Pass,
    /// It does not.
    Drop,
}

struct Sender {
    pod: PodEntry,
    /// Cookie of the enrolled pod.
    cookie: u64,
    /// Cookie of the namespace that sends: the pod's, or of one inside it.
    own_cookie: u64,
}

/// Decides about a packet that a socket sends.
#[inline(always)]
pub(crate) fn leaving(ctx: &SkBuffContext) -> Verdict {
    let skb = ctx.skb.skb;
    let Some(settings) = maps::settings() else {
        return Verdict::Pass;
    };
    let is_marked = word!(skb, __sk_buff, mark) & settings.mask() == settings.mark();
    let is_on_lo = word!(skb, __sk_buff, ifindex) == LO;
    if is_on_lo && !is_marked {
        return Verdict::Pass;
    }
    let packet = Skb(skb);
    let segment = match packet::parse(&packet) {
        Parsed::Tcp(header) if is_on_lo => {
            return if header.is_syn {
                hold(&packet, &header)
            } else {
                Verdict::Pass
            };
        }
        Parsed::Tcp(header) if header.is_syn || is_marked => header.segment(&packet),
        Parsed::Tcp(_) | Parsed::Other => return Verdict::Pass,
        Parsed::Unclear if is_on_lo => return Verdict::Pass,
        Parsed::Unclear => None,
    };
    let Some(sender) = sender(skb, settings) else {
        return Verdict::Pass;
    };
    if !sender.pod.flags().contains(PodFlags::GUARD_AUDIT) {
        return Verdict::Pass;
    }
    let evades = match &segment {
        None => Ok(Reason::GuardDropUnparsed),
        Some(segment) => {
            let leaving = Leaving {
                is_syn: segment.is_syn,
                is_marked,
                is_lent: is_lent(skb),
                is_nested: sender.cookie != sender.own_cookie,
            };
            let skips = PodSkips(sender.cookie);
            decide::evades(
                leaving,
                &skips,
                &segment.destination,
                segment.destination_port,
            )
        }
    };
    let flow = || Flow::of(sender.own_cookie, segment.as_ref());
    match evades {
        Err(pass) => {
            count(Program::GuardEgress, pass, flow);
            Verdict::Pass
        }
        Ok(reason) => {
            let enforce = sender.pod.flags().contains(PodFlags::GUARD_ENFORCE);
            let counted = if enforce { reason } else { Reason::GuardAudit };
            count(Program::GuardEgress, counted, flow);
            report(
                &sender,
                segment.as_ref(),
                settings,
                (reason, enforce, word!(skb, __sk_buff, ifindex)),
            );
            match enforce {
                true => Verdict::Drop,
                false => Verdict::Pass,
            }
        }
    }
}

/// Holds a marked SYN on lo while the pod has no outbound listener.
#[inline(always)]
fn hold(packet: &Skb, header: &Header) -> Verdict {
    // SAFETY: the packet is the kernel's.
    let cookie = unsafe { bpf_get_netns_cookie(packet.0.cast()) };
    let Some(pod) = maps::pod(cookie) else {
        return Verdict::Pass;
    };
    let which = match header.is_v4 {
        true => ListenerSlot::Outbound4,
        false => ListenerSlot::Outbound6,
    };
    match maps::listener(which.index(pod.slot())) {
        Some(listener) => {
            // SAFETY: the listener was taken from the map and is released once.
            unsafe { bpf_sk_release(listener) };
            Verdict::Pass
        }
        None => {
            count(Program::GuardEgress, Reason::SlotEmptyOut, || {
                Flow::of(cookie, header.segment(packet).as_ref())
            });
            Verdict::Drop
        }
    }
}

/// The enrolled pod that the packet comes from, by its namespace, or else by its cgroup.
#[inline(always)]
fn sender(skb: *mut __sk_buff, settings: &Settings) -> Option<Sender> {
    // SAFETY: the packet is the kernel's.
    let own_cookie = unsafe { bpf_get_netns_cookie(skb.cast()) };
    let (pod, cookie) = match maps::pod(own_cookie) {
        Some(pod) => (pod, own_cookie),
        None => {
            let cookie = cookie_by_cgroup(skb, settings)?;
            (maps::pod(cookie)?, cookie)
        }
    };
    Some(Sender {
        pod,
        cookie,
        own_cookie,
    })
}

#[inline(always)]
fn cookie_by_cgroup(skb: *mut __sk_buff, settings: &Settings) -> Option<u64> {
    let mut found = None;
    for level in settings.levels() {
        if *level == 0 || found.is_some() {
            break;
        }
        // SAFETY: the packet is the kernel's; the helper answers 0 for levels that do not exist.
        let cgroup = unsafe { bpf_skb_ancestor_cgroup_id(skb, level.cast_signed()) };
        // SAFETY: the value is copied at once.
        found = unsafe { maps::CGROUPS.get(cgroup) }.copied();
    }
    found
}

#[inline(always)]
fn is_lent(skb: *mut __sk_buff) -> bool {
    let sk = socket!(skb, __sk_buff, __bindgen_anon_2);
    if sk.is_null() {
        return false;
    }
    // SAFETY: the socket comes from the packet and is not null.
    let full = unsafe { bpf_sk_fullsock(sk) };
    // SAFETY: the socket is not null.
    !full.is_null() && unsafe { maps::LENT.contains(full) }
}

/// Tells user space, unless it was told about this pod a moment ago.
#[inline(always)]
fn report(
    sender: &Sender,
    segment: Option<&Segment>,
    settings: &Settings,
    (reason, enforce, ifindex): (Reason, bool, u32),
) {
    // SAFETY: the helper takes nothing.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the value is copied at once.
    let last = unsafe { maps::GUARD_SEEN.get(sender.cookie) }
        .copied()
        .unwrap_or(0);
    if last != 0 && time_ns - last < settings.event_interval_ns() {
        return;
    }
    // A full map forgets another pod's time, and a lost race reports twice: both are harmless.
    maps::GUARD_SEEN.insert(sender.cookie, time_ns, 0).ok();
    let record = GuardRecord {
        cookie: sender.cookie,
        sender_cookie: sender.own_cookie,
        time_ns,
        reason: reason as u32,
        audit: u32::from(!enforce),
        slot: sender.pod.slot(),
        ifindex,
        source: segment.map_or(Addr::default(), |segment| segment.source),
        destination: segment.map_or(Addr::default(), |segment| segment.destination),
        source_port: segment.map_or([0; 2], |segment| segment.source_port),
        destination_port: segment.map_or([0; 2], |segment| segment.destination_port),
        pad: [0; 4],
    };
    // A full buffer loses the report; the counter has it.
    maps::GUARD_EVENTS
        .output_untyped::<GuardRecord>(record, 0)
        .ok();
}
