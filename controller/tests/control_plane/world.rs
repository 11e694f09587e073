//! A controller on loopback with a folder of manifests, and clients for it.

use std::{fs, future::Future, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser as _;
use linkerd2_proxy_api::{
    destination::destination_client::DestinationClient, identity::identity_client::IdentityClient,
    inbound::inbound_server_policies_client::InboundServerPoliciesClient,
    outbound::outbound_policies_client::OutboundPoliciesClient,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use weft_api::proto::node::node_client::NodeClient;
use weft_controller::{
    app::App,
    config::{Cli, Command, Config},
    fswatch::Timing,
    tokens::JoinTokens,
};

/// Longer than anything takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const SERVER_NAME: &str =
    "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local";

/// Bounds a wait.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.expect("took longer than the tests' patience")
}

/// The next message of a stream.
pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = within(stream.message()).await.unwrap();
    message.expect("the stream ended")
}

/// The error that ends a stream.
pub(crate) async fn end<T: std::fmt::Debug>(stream: &mut Streaming<T>) -> Status {
    within(stream.message()).await.unwrap_err()
}

pub(crate) struct World {
    folder: TempDir,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl World {
    /// Starts a controller with these manifests.
    pub(crate) async fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join("manifests").join(name), text).unwrap();
        }
        let world = Self::start(folder, &[]).await;
        world.ready().await
    }

    /// Starts a controller whose folder of manifests does not exist.
    pub(crate) async fn without_manifests() -> Self {
        Self::start(tempfile::tempdir().unwrap(), &[]).await
    }

    async fn ready(self) -> Self {
        self.eventually("/ready", |answer| answer.contains("200 OK"))
            .await;
        self
    }

    /// Stops the controller and starts another one with the same folders.
    pub(crate) async fn restart(self, flags: &[&str]) -> Self {
        let Self {
            folder,
            stop,
            mut running,
            ..
        } = self;
        stop.cancel();
        within(running.join_next()).await;
        Self::start(folder, flags).await.ready().await
    }

    async fn start(folder: TempDir, flags: &[&str]) -> Self {
        weft_runtime::tls::install_provider();
        let source = format!("dir:{}", folder.path().join("manifests").display());
        let state = folder.path().join("state");
        let state = state.to_str().unwrap();
        let fixed = [
            "weft-controller",
            "run",
            "--source",
            &source,
            "--state",
            state,
        ];
        let ports = ["--listen", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"];
        let all = fixed.iter().chain(&ports).chain(flags);
        let cli = Cli::try_parse_from(all).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("not run");
        };
        let timing = Timing {
            quiet: Duration::from_millis(5),
            longest: Duration::from_millis(50),
            rescan: Duration::from_millis(500),
        };
        let app = App::start(Config::try_from(*args).unwrap(), timing)
            .await
            .unwrap();
        let (listen, admin) = (app.listen[0], app.admin);
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        let stopped = stop.clone().cancelled_owned();
        running.spawn(async move { app.tasks.run(stopped).await.unwrap() });
        Self {
            folder,
            listen,
            admin,
            stop,
            running,
        }
    }

    pub(crate) fn manifest(&self, name: &str) -> PathBuf {
        self.folder.path().join("manifests").join(name)
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join("state").join(name)
    }

    /// Replaces a manifest as an editor does: in place.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.manifest(name), text).unwrap();
    }

    pub(crate) fn token(&self, node: &str) -> String {
        let tokens = JoinTokens::new(&self.folder.path().join("state"));
        tokens.create(node).unwrap()
    }

    /// A request with the credential of a node.
    pub(crate) fn with_token<T>(&self, node: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = format!("Bearer {}", self.token(node));
        request
            .metadata_mut()
            .insert("authorization", value.parse().unwrap());
        request
    }

    pub(crate) async fn channel(&self) -> Channel {
        let anchors = fs::read(self.state("trust-anchors.pem")).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(anchors))
            .domain_name(SERVER_NAME);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.listen)).unwrap();
        within(endpoint.tls_config(tls).unwrap().connect())
            .await
            .unwrap()
    }

    pub(crate) async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    pub(crate) async fn destination(&self) -> DestinationClient<Channel> {
        DestinationClient::new(self.channel().await)
    }

    pub(crate) async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel().await)
    }

    pub(crate) async fn outbound(&self) -> OutboundPoliciesClient<Channel> {
        OutboundPoliciesClient::new(self.channel().await)
    }

    pub(crate) async fn inbound(&self) -> InboundServerPoliciesClient<Channel> {
        InboundServerPoliciesClient::new(self.channel().await)
    }

    /// Asks the admin server until the answer is as wanted.
    pub(crate) async fn eventually(&self, path: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.admin(path).await;
            if is_wanted(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path}: {answer}");
            tick.tick().await;
        }
    }

    pub(crate) async fn admin(&self, path: &str) -> String {
        let mut socket = within(TcpStream::connect(self.admin)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(socket.read_to_string(&mut answer)).await.unwrap();
        answer
    }
}

/// A namespace with annotations.
pub(crate) fn namespace(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n---\n"
    )
}

/// A running pod.
pub(crate) fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: web\n  containers:\n  - name: app\n    \
         ports: [{{containerPort: 8080}}]\n    readinessProbe: {{httpGet: {{path: /up, port: 8080}}}}\n\
         status: {{phase: Running, podIPs: [{{ip: {ip}}}]}}\n---\n"
    )
}

pub(crate) const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.96.0.1, selector: {app: web}, \
    ports: [{name: http, port: 80, targetPort: 8080}, {name: sql, port: 5432}]}\n---\n";

pub(crate) const ENABLED: &str = "linkerd.io/inject: enabled";
