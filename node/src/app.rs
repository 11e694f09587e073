//! Puts the daemon together and runs it: the only place that makes long-lived things.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, Permissions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_runtime::{
    Tasks,
    admin::{Admin, render},
    logging::report,
    ready::Readiness,
    signal,
};

use crate::{
    cni,
    config::{Config, routing},
    control::Control,
    kernel::{Kernel, KernelConfig, cgroup2_mount},
    lend::{self, Hub},
    metrics::{KernelCollector, Metrics},
    pods::{
        Lending, Parts, Pods,
        desired::Desired,
        enrol::Tools,
        inside::{Inside as _, Namespaces},
        record::Records,
    },
};

/// Runs the daemon until it is told to stop. What it made in the kernel stays, for its successor.
///
/// # Errors
/// When something it needs is missing, or a part of it fails.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let run_dir = config.pods.run_dir.clone();
    let _lock = prepare(&run_dir)?;
    let kernel = Kernel::open(&config.kernel).map_err(|error| {
        let remedy = error.remedy();
        anyhow::Error::new(error).context(format!("the kernel side cannot be used; {remedy}"))
    })?;
    let kernel = Arc::new(kernel);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    registry.register_collector(Box::new(kernel_collector(&kernel)));

    let readiness = Readiness::default();
    let desired = Arc::new(Desired::open(&run_dir, config.never_wait_for));
    let hub = Arc::new(Hub::new(run_dir.join("generation")));
    let pods = Pods::new(Parts {
        tools: Tools {
            datapath: Arc::clone(&kernel) as _,
            inside: Arc::new(Namespaces::new(config.routing)),
            cgroup_mount: cgroup2_mount(),
        },
        desired: Arc::clone(&desired),
        hub: Arc::clone(&hub),
        records: Records::open(&run_dir)?,
        metrics: Arc::clone(&metrics),
        config: config.pods,
    });
    pods.adopt()
        .await
        .context("take over the pods of a former process")?;
    for path in kernel.remove_older().context("remove older pins")? {
        info!(path = %path.display(), "removed what an older version left");
    }

    let lending = lend::Server::bind(
        lend::Config {
            path: run_dir.join("node.sock"),
            uids: config.uids,
        },
        Arc::clone(&hub),
        Arc::new(Lending(Arc::clone(&pods))),
        Arc::clone(&metrics),
    )?;
    let cni = cni::server::Server::bind(cni::server::Answers {
        node: config.control.node.clone(),
        pods: Arc::clone(&pods),
        desired: Arc::clone(&desired),
        hub: Arc::clone(&hub),
        run_dir,
    })?;
    let control = Control {
        config: config.control,
        desired,
        pods: Arc::clone(&pods),
        metrics: Arc::clone(&metrics),
        pending: Some(readiness.wait_for()),
    };
    let admin = Admin {
        readiness: readiness.clone(),
        metrics: Arc::new({
            let metrics = Arc::clone(&metrics);
            move || {
                metrics.set_agents(&hub.agents());
                render(&registry)
            }
        }),
        extra: None,
    };

    let mut tasks = Tasks::new();
    let admin_addr = config.admin_addr;
    tasks.spawn("lend", |stop| lending.serve(stop));
    tasks.spawn("cni", |stop| cni.serve(stop));
    tasks.spawn("control", |stop| control.run(stop));
    tasks.spawn("reconcile", {
        let pods = Arc::clone(&pods);
        |stop| pods.reconcile(stop)
    });
    #[cfg(feature = "kernel-log")]
    tasks.spawn("kernel-log", {
        let mut lines = kernel.lines()?;
        |stop| async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = lines.print() => ended.context("read the kernel programs' log"),
            }
        }
    });
    tasks.spawn("guard", {
        let pods = Arc::clone(&pods);
        |stop| report_guard(kernel, pods, metrics, stop)
    });
    tasks.spawn("admin", |stop| admin.serve(admin_addr, stop));
    info!("weft-node runs");
    let ended = tasks.run(signal::terminate()).await;
    readiness.drain();
    pods.drain().await;
    Ok(ended?)
}

/// Makes the run directory, and makes sure that no other daemon uses it.
fn prepare(run_dir: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(run_dir)
        .with_context(|| format!("make {} (--run-dir)", run_dir.display()))?;
    // The agent, which is another user, reaches node.sock; records are root's.
    fs::set_permissions(run_dir, Permissions::from_mode(0o711))
        .with_context(|| format!("set the mode of {}", run_dir.display()))?;
    let path = run_dir.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        lock.read_to_string(&mut pid).ok();
        anyhow::bail!(
            "another weft-node (pid {}) uses {}; stop it, or give another --run-dir",
            pid.trim(),
            run_dir.display()
        );
    }
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(lock)
}

fn kernel_collector(kernel: &Arc<Kernel>) -> KernelCollector {
    let kernel = Arc::clone(kernel);
    KernelCollector::new(Box::new(move || match kernel.counters() {
        Ok(counters) => counters
            .into_iter()
            .map(|(reason, count)| (reason.name(), count))
            .collect(),
        Err(error) => {
            warn!(error = %report(&error), "counters of the kernel side cannot be read");
            Vec::new()
        }
    }))
}

/// One line per pod in this time: a client that tries again and again would fill the log.
const QUIET: Duration = Duration::from_secs(5);

/// Logs and counts what the guard reports.
async fn report_guard(
    kernel: Arc<Kernel>,
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut events = kernel.events().context("follow the guard's reports")?;
    let mut logged: HashMap<u64, Instant> = HashMap::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = events.next() => event.context("read a report of the guard")?,
        };
        metrics.guard_event(event.reason.name());
        logged.retain(|_, at| at.elapsed() < QUIET);
        if logged.contains_key(&event.cookie) {
            continue;
        }
        logged.insert(event.cookie, Instant::now());
        let pod = pods.by_cookie(event.cookie).map_or_else(
            || format!("cookie {}", event.cookie),
            |pod| format!("{}/{}", pod.namespace, pod.name),
        );
        warn!(
            pod,
            destination = %event.destination,
            reason = event.reason.name(),
            dropped = event.dropped,
            nested = event.nested,
            "connection outside the mesh"
        );
    }
}

/// Removes what the daemon leaves behind when it stops: pins first, so that nothing is captured any
/// more, then rules and routes in the pods that records name. Agents are to be stopped before.
///
/// # Errors
/// When a daemon still runs, or something cannot be removed.
pub fn cleanup(run_dir: &Path, kernel: &KernelConfig) -> anyhow::Result<String> {
    let _lock = prepare(run_dir)?;
    crate::kernel::cleanup(kernel).context("remove pins")?;
    let mut done = format!("removed pins below {}\n", kernel.bpffs.display());
    let records = Records::open(run_dir)?;
    let inside = Namespaces::new(routing(kernel.settings));
    for record in records.load().context("read the pods' records")? {
        let sandbox = &record.sandbox;
        let outcome = match inside.open(&sandbox.netns) {
            Ok(netns) if netns.id() == sandbox.netns_id => match inside.unroute(&netns) {
                Ok(()) => "removed rule and route".to_owned(),
                Err(error) => report(&error).to_string(),
            },
            Ok(_) | Err(_) => "gone already".to_owned(),
        };
        let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
        done.push_str(&format!("{pod}: {outcome}\n"));
        records.forget(&sandbox.uid);
    }
    Ok(done)
}
