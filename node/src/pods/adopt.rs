//! After a restart: takes over the pods that a former process enrolled, and cleans up after those
//! that are gone.
//!
//! Programs, maps and links are pinned, so connections are captured all the while. Listeners live on
//! in agents, which offer them back; a pod waits for that until all are here or the grace is over.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};
use weft_runtime::logging::report;

use super::{
    desired, enrol,
    enrol::Moment,
    netns::NetnsId,
    record::Record,
    status::Standing,
    table::{Adopting, Pods},
};

impl Pods {
    /// Reads the records of a former process. To be called before anything else is served.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn adopt(self: &Arc<Self>) -> std::io::Result<()> {
        let records = self.parts.records.load()?;
        let mut known = Vec::new();
        for record in records {
            let sandbox = &record.sandbox;
            let is_there = NetnsId::of_path(&sandbox.netns).is_ok_and(|id| id == sandbox.netns_id);
            if is_there {
                known.push(record);
            } else {
                self.clean_up(&record);
            }
        }
        self.clean_up_unknown(&known);
        let (count, cookies) = (known.len(), self.cookies_by_slot());
        for record in known {
            self.take_over(record, &cookies).await;
        }
        info!(pods = count, "pods of a former process taken over");
        self.changed(self.entries().iter().map(|e| e.uid.clone()).collect());
        let this = Arc::clone(self);
        let grace = self.parts.config.adopt_grace + Duration::from_millis(10);
        self.tasks.spawn(async move {
            tokio::time::sleep(grace).await;
            for entry in this.entries() {
                // What agents did not bring back is made anew.
                this.converge(&entry, Moment::Late).await.ok();
            }
        });
        Ok(())
    }

    async fn take_over(self: &Arc<Self>, record: Record, cookies: &[(u32, u64)]) {
        let Record { sandbox, made, pod } = record;
        let entry = self.entry(&sandbox.uid);
        let mut state = entry.state.lock().await;
        if let Some(pod) = pod.as_deref().and_then(desired::decode) {
            self.parts.desired.remember(pod.clone());
            state.pod = Some(Arc::new(pod));
        }
        let mut standing = Standing::Unmeshed;
        if let Some(mut made) = made {
            if made.cookie == 0
                && let Some((_, cookie)) = cookies.iter().find(|(slot, _)| *slot == made.slot)
            {
                made.cookie = *cookie;
            }
            if self.reserve_slot(made.slot) {
                standing = Standing::Adopting;
                state.adopting = Some(Adopting {
                    made,
                    held: Vec::new(),
                    deadline: Instant::now() + self.parts.config.adopt_grace,
                });
            } else {
                warn!(
                    uid = sandbox.uid,
                    slot = made.slot,
                    "two records have the same slot"
                );
            }
        }
        state.sandbox = Some(sandbox);
        entry.note_sandbox(&state);
        self.publish(&entry, &state, standing);
    }

    /// Cleans up after a pod whose namespace is gone.
    fn clean_up(&self, record: &Record) {
        let sandbox = &record.sandbox;
        info!(
            uid = sandbox.uid,
            pod = sandbox.name,
            "pod has gone while no daemon ran"
        );
        if let Some(made) = &record.made {
            let tools = &self.parts.tools;
            enrol::undo(tools, &sandbox.uid, None, made.cookie, made.slot);
        }
        self.parts.records.forget(&sandbox.uid);
    }

    /// Removes from the kernel what no record names.
    fn clean_up_unknown(&self, known: &[Record]) {
        let datapath = &self.parts.tools.datapath;
        let made = || known.iter().filter_map(|record| record.made.as_ref());
        for uid in datapath.pinned_pods().unwrap_or_default() {
            let is_known = known
                .iter()
                .any(|record| record.made.is_some() && record.sandbox.uid == uid);
            if !is_known && let Err(error) = datapath.detach(&uid) {
                warn!(uid, error = %report(&error), "steering of an unknown pod cannot be detached");
            }
        }
        for pod in datapath.known_pods().unwrap_or_default() {
            if made().any(|made| made.cookie == pod.cookie || made.slot == pod.slot) {
                continue;
            }
            let removed = datapath.clear_listeners(pod.slot);
            if let Err(error) = removed.and_then(|()| datapath.remove_pod(pod.cookie, pod.slot)) {
                warn!(cookie = pod.cookie, error = %report(&error), "an unknown pod cannot be removed from the kernel");
            }
        }
    }

    fn cookies_by_slot(&self) -> Vec<(u32, u64)> {
        let known = self.parts.tools.datapath.known_pods().unwrap_or_default();
        known.iter().map(|pod| (pod.slot, pod.cookie)).collect()
    }
}
