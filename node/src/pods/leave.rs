//! The way out of the mesh: gently for a pod that runs on, at once for one that is deleted.

use std::{os::fd::AsFd as _, sync::Arc, time::Duration};

use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_api::model::Pod;
use weft_runtime::logging::report;

use super::{
    converge::blocking,
    enrol::{self, Listener},
    netns::Netns,
    sockets,
    status::Standing,
    table::{Entry, Pods, State},
};

/// Time for connections that were captured an instant before capture went off to arrive.
const SETTLE: Duration = Duration::from_millis(50);

/// How long agents may take to accept what waits in the listeners of a pod that leaves.
const ACCEPT_GRACE: Duration = Duration::from_secs(1);

impl Pods {
    /// Takes a running pod out of the mesh without cutting what is open: capture off, what waits is
    /// accepted, agents finish, and only then the route that open connections need goes.
    pub(super) async fn leave(
        &self,
        entry: &Entry,
        state: &mut OwnedMutexGuard<State>,
        pod: &Pod,
        cancel: CancellationToken,
    ) {
        let Some(enrolled) = state.enrolled.take() else {
            return;
        };
        let listeners = enrolled.listeners.clone();
        let (cookie, netns) = (enrolled.cookie, Arc::clone(&enrolled.netns));
        let own = enrolled.view.addresses.clone();
        state.enrolled = Some(enrolled);
        self.publish(entry, state, Standing::Leaving);
        let datapath = &self.parts.tools.datapath;
        if let Err(error) = datapath.set_enrolled(cookie, false) {
            warn!(uid = entry.uid, error = %report(&error), "capture cannot be switched off");
        }
        let finish = async {
            sleep(SETTLE).await;
            accepted(&listeners).await;
            self.parts.hub.withdraw(&entry.uid);
            self.finished(&netns, &own).await;
        };
        tokio::select! {
            () = finish => {}
            () = cancel.cancelled() => {}
        }
        self.take_out(entry, state).await;
        info!(
            pod = pod.display_name(),
            uid = entry.uid,
            "pod left the mesh"
        );
        if let Some(sandbox) = &state.sandbox {
            self.keep(sandbox, None, None);
        }
        self.stay_out(entry, state, pod);
    }

    /// Waits until agents hold no captured connection of the pod any more, or the grace is over.
    async fn finished(&self, netns: &Arc<Netns>, own: &[std::net::IpAddr]) {
        let deadline = Instant::now() + self.parts.config.leave_grace;
        while Instant::now() < deadline {
            let (inside, netns) = (Arc::clone(&self.parts.tools.inside), Arc::clone(netns));
            let own = own.to_vec();
            let left = blocking(move || inside.captured(&netns, &own)).await;
            match left {
                Ok(left) if !left.is_empty() => sleep(Duration::from_millis(100)).await,
                Ok(_) | Err(_) => return,
            }
        }
        // Without the route, what is left would leave the pod in clear.
        let (inside, netns) = (Arc::clone(&self.parts.tools.inside), Arc::clone(netns));
        let own = own.to_vec();
        let cut = blocking(move || {
            let left = inside.captured(&netns, &own)?;
            inside.cut(&netns, left)
        });
        match cut.await {
            Ok(connections) => warn!(connections, "connections of a pod that leaves are cut"),
            Err(error) => {
                warn!(error = %report(&error), "connections of a pod that leaves cannot be cut")
            }
        }
    }

    /// Undoes an enrolment at once, agents being told first. Idempotent.
    pub(super) async fn take_out(&self, entry: &Entry, state: &mut OwnedMutexGuard<State>) {
        self.parts.hub.withdraw(&entry.uid);
        *entry.netns.lock() = None;
        let Some(Traces {
            cookie,
            slot,
            netns,
        }) = self.traces(state)
        else {
            return;
        };
        let (tools, uid) = (self.parts.tools.clone(), entry.uid.clone());
        blocking(move || enrol::undo(&tools, &uid, netns.as_deref(), cookie, slot)).await;
        self.free_slot(slot);
    }

    /// What is to be undone; takes it from the state.
    fn traces(&self, state: &mut State) -> Option<Traces> {
        if let Some(enrolled) = state.enrolled.take() {
            return Some(Traces {
                cookie: enrolled.cookie,
                slot: enrolled.slot,
                netns: Some(enrolled.netns),
            });
        }
        let adopting = state.adopting.take()?;
        let netns = state.sandbox.as_ref().and_then(|sandbox| {
            let netns = self.parts.tools.inside.open(&sandbox.netns).ok()?;
            (netns.id() == sandbox.netns_id).then(|| Arc::new(netns))
        });
        Some(Traces {
            cookie: adopting.made.cookie,
            slot: adopting.made.slot,
            netns,
        })
    }
}

/// What an enrolment left, to be undone.
struct Traces {
    cookie: u64,
    slot: u32,
    netns: Option<Arc<Netns>>,
}

/// Waits until nothing waits in the listeners, or the grace is over.
async fn accepted(listeners: &[Listener]) {
    let deadline = Instant::now() + ACCEPT_GRACE;
    let is_waiting =
        |listener: &Listener| sockets::waiting(listener.socket.as_fd()).is_ok_and(|n| n > 0);
    while listeners.iter().any(is_waiting) && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
}
