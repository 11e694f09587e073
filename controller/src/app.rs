//! Wires everything; the only place that makes things which live long.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tracing::info;
use weft_runtime::{
    Tasks,
    admin::{Admin, text},
    ready::Readiness,
};

use crate::{
    ca::{self, Ca},
    config::{Config, Source},
    fswatch::Timing,
    metrics::{Metrics, Scrape},
    problems::Problems,
    serve::{self, Context, Hub, Limits, Tls},
    source::{self, Dir},
    tokens::JoinTokens,
};

/// A controller whose listeners are bound and whose tasks run.
pub struct App {
    /// The tasks; the first that ends, ends the process.
    pub tasks: Tasks,
    /// Whether everything was read.
    pub readiness: Readiness,
    /// Where gRPC is served.
    pub listen: Vec<SocketAddr>,
    /// Where the admin server is.
    pub admin: SocketAddr,
}

impl App {
    /// Builds and starts everything.
    ///
    /// # Errors
    /// When certificates cannot be used or an address cannot be bound.
    pub async fn start(config: Config, timing: Timing) -> anyhow::Result<Self> {
        let mut tasks = Tasks::new();
        let readiness = Readiness::default();
        let first_read = readiness.wait_for();
        let ca = Arc::new(open_ca(&config)?);
        let metrics = Arc::new(Metrics::default());
        let problems = Problems::default();
        let hub = Arc::new(Hub::new(config.cluster.clone()));
        let context = Context {
            hub: Arc::clone(&hub),
            ca: Arc::clone(&ca),
            tokens: Arc::new(JoinTokens::new(&config.state)),
            metrics: Arc::clone(&metrics),
            cluster_domain: Arc::clone(&config.cluster.cluster_domain),
            stop: tasks.stop_token(),
        };
        let admin = TcpListener::bind(config.admin)
            .await
            .with_context(|| format!("bind {} (see --admin-addr)", config.admin))?;
        let admin_addr = admin.local_addr()?;
        let tls = match config.plaintext {
            true => Tls::Plaintext,
            false => {
                let (tls, renewal) = ca::server_config(&ca, config.server_names())
                    .context("make the controller's own certificate")?;
                tasks.spawn("server certificate", |stop| ca::run_renewal(renewal, stop));
                Tls::Server(tls)
            }
        };
        let mut listen = Vec::new();
        for addr in &config.listen {
            let listener = TcpListener::bind(addr)
                .await
                .with_context(|| format!("bind {addr} (see --listen)"))?;
            listen.push(listener.local_addr()?);
            let (tls, routes) = (tls.clone(), serve::routes(&context));
            tasks.spawn("serve", |stop| {
                serve::serve(listener, tls, routes, Limits::default(), stop)
            });
        }
        let show = admin_server(&readiness, &metrics, &hub, &problems, &ca);
        tasks.spawn("admin", |stop| show.serve_on(admin, stop));
        let follow_ca = Arc::clone(&ca);
        tasks.spawn("certificates", |stop| follow_ca.run(timing, stop));
        let Source::Dir(folder) = config.source;
        tasks.spawn("manifests", |stop| {
            let dir = Dir::new(folder);
            source::run(dir, hub, problems, timing, first_read, stop)
        });
        info!(
            trust_domain = &*config.cluster.trust_domain,
            issuer_expires = %time::OffsetDateTime::from(ca.expires()),
            "started"
        );
        Ok(Self {
            tasks,
            readiness,
            listen,
            admin: admin_addr,
        })
    }
}

fn open_ca(config: &Config) -> anyhow::Result<Ca> {
    let ca = match &config.ca_files {
        Some(files) => Ca::with_files(files.clone(), config.validity),
        None => Ca::with_state(&config.state, &config.cluster.trust_domain, config.validity),
    };
    ca.context("open the certificate authority")
}

fn admin_server(
    readiness: &Readiness,
    metrics: &Arc<Metrics>,
    hub: &Arc<Hub>,
    problems: &Problems,
    ca: &Arc<Ca>,
) -> Admin {
    let scrape = Mutex::new(Scrape::new(Arc::clone(metrics)));
    let (hub, ca) = (Arc::clone(hub), Arc::clone(ca));
    let shown = problems.clone();
    let counted = problems.clone();
    Admin {
        readiness: readiness.clone(),
        metrics: Arc::new(move || Scrape::render(&scrape, &hub, &counted, &ca)),
        extra: Some(Arc::new(move |request| {
            (request.uri().path() == "/debug/problems").then(|| show_problems(&shown))
        })),
    }
}

fn show_problems(problems: &Problems) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(&*problems.current()) {
        Ok(json) => {
            let mut response = text(StatusCode::OK, json);
            let value = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, value);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
