//! Builds everything and runs it: the one place where long-lived things are made.
//!
//! ```text
//! control runtime (this thread)                      workers (one thread and runtime each)
//!   lend ── events ──> pods ── listeners ──────────────> accept, serve
//!   discovery, trust bundle, identities <─ asked by ────
//!   admin: node and pods
//! ```
//!
//! Stopping, on a signal or because a newer agent serves: not ready → nothing more is accepted →
//! connections are told to finish → those that have not when time is up are cut → exit. Discovery
//! and identities work until the end, because what finishes may need them.

mod pods;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{runtime, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::info;
use weft_runtime::{Tasks, ready::Readiness, signal};

use self::pods::{Pods, Settings};
use crate::{
    admin::{Describe, node_admin},
    config::Config,
    discovery::{self, Controller, ControllerTls, Discovery},
    identity::{CaClient, Store, TokenFile},
    metrics::{ClientTls, NodeMetrics},
    sockets::Borrower,
    worker::Workers,
};

/// How often idle series are dropped and gauges set.
const TIDY: Duration = Duration::from_secs(30);

/// Runs the agent until it is told to stop and has drained.
///
/// # Errors
/// When something cannot be started, or a part of the agent ended by itself.
pub fn run(config: Config) -> anyhow::Result<()> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the control runtime")?
        .block_on(Box::pin(serve(config)))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let metrics = Arc::new(NodeMetrics::default());
    let mut tasks = Tasks::new();

    let tls = ControllerTls::new(&config.trust_anchors, &config.controller_name)
        .context("trust the controller (see --trust-anchors, --controller-name)")?;
    let channel = discovery::channel(&config.controller, tls.clone())
        .context("address the controller (see --controller)")?;
    let token = TokenFile::new(&config.token_file);
    // Without a bundle: workloads trust only what the controller says now, not the bootstrap file.
    let store = Store::new(CaClient::new(channel.clone(), token.clone()), None);
    let controller_id = ClientTls::Established(config.controller_name.parse()?);
    let controller = Arc::new(Controller::new(
        discovery::Settings {
            channel,
            token,
            node: Arc::clone(&config.node),
            cluster_networks: Arc::clone(&config.cluster_networks),
            calls: metrics.control(&config.controller, &controller_id),
            metrics: metrics.agent.clone(),
        },
        tasks.stop_token(),
    ));
    let workers = Workers::start(config.workers).context("start the workers")?;
    let (borrower, link, events) = Borrower::new(&config.node_socket);
    let pods = Pods::new(Settings {
        workers,
        store: store.clone(),
        discovery: Discovery::new(Arc::clone(&controller) as _),
        metrics: Arc::clone(&metrics),
        link,
        readiness: readiness.clone(),
        drain_timeout: config.drain_timeout,
    });

    let mut pages: BTreeMap<&'static str, Describe> = BTreeMap::new();
    let table = pods.table();
    pages.insert("/debug/pods", Box::new(move || table.describe()));
    let known = Arc::clone(&controller);
    pages.insert("/debug/discovery", Box::new(move || known.describe()));
    let settings = config.describe();
    pages.insert("/debug/config", Box::new(move || settings.clone()));
    let admin = node_admin(readiness, Arc::clone(&metrics), pages);

    let addr = config.admin_addr;
    tasks.spawn("admin", |stop| admin.serve(addr, stop));
    let install = install_bundle(store.clone(), tls);
    let follower = Arc::clone(&controller);
    tasks.spawn("trust-bundle", |stop| async move {
        follower.follow_bundle(install, stop).await;
        Ok(())
    });
    tasks.spawn("discovery", |stop| async move {
        controller.sweep(stop).await;
        Ok(())
    });
    tasks.spawn("tidy", |stop| tidy(metrics, store, stop));
    tasks.spawn("lend", |stop| borrower.run(stop));

    let (drain, drained) = (CancellationToken::new(), CancellationToken::new());
    let (asked, done) = (drain.clone(), drained.clone());
    tasks.spawn("pods", |stop| async move {
        Box::pin(pods.run(events, asked, done, stop)).await
    });
    info!(node = %config.node, workers = config.workers, "started");
    tasks.run(shutdown(drain, drained)).await?;
    info!("stopped");
    Ok(())
}

/// Completes when connections have been drained, for whatever reason. A second signal while they
/// drain ends the wait.
async fn shutdown(drain: CancellationToken, drained: CancellationToken) {
    tokio::select! {
        () = signal::terminate() => drain.cancel(),
        () = drained.cancelled() => return,
    }
    tokio::select! {
        () = signal::terminate() => info!("told twice to stop"),
        () = drained.cancelled() => {}
    }
}

/// Takes a trust bundle into use everywhere, or nowhere if it cannot be used.
fn install_bundle(
    store: Store,
    tls: ControllerTls,
) -> impl FnMut(&str) -> anyhow::Result<()> + Send + 'static {
    move |pem| {
        store.set_bundle(pem)?;
        tls.set_anchors(pem)?;
        Ok(())
    }
}

async fn tidy(
    metrics: Arc<NodeMetrics>,
    store: Store,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = interval(TIDY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.retire_idle();
        let statuses = store.statuses();
        let valid = statuses.iter().filter(|status| status.expires.is_some());
        let valid = i64::try_from(valid.count()).unwrap_or(i64::MAX);
        metrics.agent.certificates.set(valid);
    }
    Ok(())
}
