//! Data threads: each accepts connections of every pod and keeps them from accept to end.
//!
//! One current-thread runtime per worker, so that a request never waits for another thread and
//! pools need no sharing. Every worker accepts from its own duplicate of each listener; the kernel
//! wakes whoever is free. Workers take commands from the control runtime through a channel and
//! share nothing with each other but counters.

use std::{
    collections::HashMap, io, net::TcpListener as StdListener, num::NonZeroUsize, sync::Arc,
    thread, time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};
use weft_api::model::PodUid;

use crate::{
    context::PodContext,
    inbound::Inbound,
    outbound::Outbound,
    sockets::listeners::{Accepted, accept},
};

/// How often idle connections and destinations are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// The data threads.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    ended: mpsc::UnboundedReceiver<usize>,
}

#[derive(Debug)]
struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
}

/// A pod's listeners on which workers accept.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Connections that leave the pod; transparent.
    pub outbound: Vec<StdListener>,
    /// Connections that come to the pod.
    pub inbound: Vec<StdListener>,
}

#[derive(Debug)]
enum Command {
    Add(Arc<PodContext>, Listeners),
    Remove(PodUid),
    StopAccepting,
}

/// One pod on one worker.
struct Shard {
    outbound: Arc<Outbound>,
    inbound: Arc<Inbound>,
    pod: Arc<PodContext>,
    /// Dropped to stop accepting.
    accepting: Option<DropGuard>,
}

/// Tells that a worker's thread has ended, however it did.
struct Ended(usize, mpsc::UnboundedSender<usize>);

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the system refuses a thread or a runtime.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let epoch = Instant::now();
        let workers: io::Result<Vec<_>> = (0..count.get())
            .map(|index| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let (commands, received) = mpsc::unbounded_channel();
                let guard = Ended(index, ended_sender.clone());
                let thread = thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || {
                        let _guard = guard;
                        runtime.block_on(run(received, epoch));
                    })?;
                Ok(Worker { commands, thread })
            })
            .collect();
        Ok(Self {
            workers: workers?,
            ended,
        })
    }

    /// Accepts a pod's connections. A pod that is known already gets new listeners, and what it
    /// has open stays; with another context it is taken for new.
    ///
    /// # Errors
    /// When a listener cannot be duplicated.
    pub fn add(&self, pod: &Arc<PodContext>, listeners: &Listeners) -> io::Result<()> {
        let copies: io::Result<Vec<_>> = self
            .workers
            .iter()
            .map(|_worker| listeners.duplicate())
            .collect();
        for (worker, listeners) in self.workers.iter().zip(copies?) {
            worker.send(Command::Add(Arc::clone(pod), listeners));
        }
        Ok(())
    }

    /// Stops accepting a pod's connections. Those that are open go on until
    /// [`PodContext::drain`] is cancelled and they have finished.
    pub fn remove(&self, uid: &PodUid) {
        for worker in &self.workers {
            worker.send(Command::Remove(uid.clone()));
        }
    }

    /// Stops accepting for all pods; attempts wait in the listeners for a newer agent.
    pub fn stop_accepting(&self) {
        for worker in &self.workers {
            worker.send(Command::StopAccepting);
        }
    }

    /// Waits until a worker ends, which none does before [`Self::stop`]. Returns which one.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn ended(&mut self) -> Option<usize> {
        self.ended.recv().await
    }

    /// Ends every connection that is still open, and the threads.
    pub fn stop(self) {
        for Worker { commands, thread } in self.workers {
            drop(commands);
            if thread.join().is_err() {
                warn!("a worker has panicked");
            }
        }
    }
}

impl Worker {
    fn send(&self, command: Command) {
        // A worker that has ended is reported by `Workers::ended`.
        if self.commands.send(command).is_err() {
            debug!("a worker has ended");
        }
    }
}

impl Listeners {
    fn duplicate(&self) -> io::Result<Self> {
        let all = |listeners: &[StdListener]| -> io::Result<Vec<_>> {
            listeners.iter().map(StdListener::try_clone).collect()
        };
        Ok(Self {
            outbound: all(&self.outbound)?,
            inbound: all(&self.inbound)?,
        })
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Nobody listens while the process ends.
        self.1.send(self.0).ok();
    }
}

/// A worker's life: commands and sweeps. Connections run as tasks beside it.
async fn run(mut commands: mpsc::UnboundedReceiver<Command>, epoch: Instant) {
    let mut pods: HashMap<PodUid, Shard> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Add(pod, listeners)) => {
                    let uid = pod.workload.uid.clone();
                    // With a context of its own it is new to us, for example for new addresses.
                    pods.retain(|known, shard| *known != uid || Arc::ptr_eq(&shard.pod, &pod));
                    let shard = pods.entry(uid).or_insert_with(|| Shard::new(pod, epoch));
                    shard.accept(listeners);
                }
                Some(Command::Remove(uid)) => {
                    // Connections hold what they need of it.
                    pods.remove(&uid);
                }
                Some(Command::StopAccepting) => {
                    for shard in pods.values_mut() {
                        shard.accepting = None;
                    }
                }
            },
            _tick = sweep.tick() => {
                for shard in pods.values() {
                    shard.outbound.sweep();
                    shard.inbound.sweep();
                }
            }
        }
    }
}

impl Shard {
    fn new(pod: Arc<PodContext>, epoch: Instant) -> Self {
        Self {
            outbound: Arc::new(Outbound::new(Arc::clone(&pod), epoch)),
            inbound: Arc::new(Inbound::new(Arc::clone(&pod))),
            pod,
            accepting: None,
        }
    }

    /// Accepts from these listeners, and no longer from those before them.
    fn accept(&mut self, listeners: Listeners) {
        let stop = CancellationToken::new();
        for listener in listeners.outbound {
            let outbound = Arc::clone(&self.outbound);
            let serve = move |accepted| Arc::clone(&outbound).serve(accepted);
            self.spawn(listener, stop.clone(), serve);
        }
        for listener in listeners.inbound {
            let inbound = Arc::clone(&self.inbound);
            let serve = move |accepted| Arc::clone(&inbound).serve(accepted);
            self.spawn(listener, stop.clone(), serve);
        }
        self.accepting = Some(stop.drop_guard());
    }

    fn spawn<F>(
        &self,
        listener: StdListener,
        stop: CancellationToken,
        serve: impl Fn(Accepted) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return warn!(%error, "listener cannot be used"),
        };
        let connections = self.pod.connections.clone();
        let each = move |accepted| drop(connections.spawn(serve(accepted)));
        // The loop ends with `stop`, before anybody waits for the pod's connections.
        drop(self.pod.connections.spawn(accept(listener, stop, each)));
    }
}

#[cfg(test)]
mod tests;
