//! A controller that says what the test wants, over TLS and with a token, as the real one does.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};
use weft_api::{
    model::Pod,
    proto::node::{
        self as proto,
        node_server::{Node, NodeServer},
        pods_update::Update,
    },
};

const NAME: &str = "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local";
const TOKEN: &str = "secret";

type Updates = mpsc::Sender<Result<proto::PodsUpdate, Status>>;

#[derive(Default)]
struct Shared {
    pods: Vec<Pod>,
    watchers: Vec<Updates>,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Shared>>);

pub(crate) struct Controller {
    pub(crate) address: String,
    pub(crate) trust_anchors: PathBuf,
    pub(crate) token_file: PathBuf,
    service: Service,
    _tasks: JoinSet<()>,
}

impl Controller {
    /// Serves pods; certificate and token are put into the folder.
    pub(crate) async fn start(folder: &Path, pods: &[Pod]) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let (trust_anchors, token_file) = (folder.join("anchors.pem"), folder.join("token"));
        std::fs::write(&trust_anchors, certificate.pem()).unwrap();
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = Service::default();
        service.0.lock().pods = pods.to_vec();
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(NodeServer::new(service.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            trust_anchors,
            token_file,
            service,
            _tasks: tasks,
        }
    }

    /// Says something new about a pod.
    pub(crate) async fn upsert(&self, pod: &Pod) {
        let watchers = self.service.0.lock().watchers.clone();
        for watcher in watchers {
            let update = Update::Upserted(proto::Pod::from(pod));
            watcher.send(Ok(message(update))).await.ok();
        }
    }
}

fn message(update: Update) -> proto::PodsUpdate {
    proto::PodsUpdate {
        update: Some(update),
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Node for Service {
    type WatchPodsStream = BoxStream<proto::PodsUpdate>;
    type WatchTrustBundleStream = BoxStream<proto::TrustBundle>;

    async fn watch_pods(
        &self,
        request: Request<proto::WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let bearer = request.metadata().get("authorization");
        if bearer.is_none_or(|bearer| bearer != format!("Bearer {TOKEN}").as_str()) {
            return Err(Status::unauthenticated("wrong token"));
        }
        assert_eq!(request.get_ref().node, "n1");
        let (sender, updates) = mpsc::channel(16);
        let pods = {
            let mut shared = self.0.lock();
            shared.watchers.push(sender.clone());
            shared.pods.iter().map(proto::Pod::from).collect()
        };
        let snapshot = Update::Snapshot(proto::PodList { pods });
        sender.send(Ok(message(snapshot))).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }

    async fn watch_trust_bundle(
        &self,
        _request: Request<proto::WatchTrustBundleRequest>,
    ) -> Result<Response<Self::WatchTrustBundleStream>, Status> {
        Err(Status::unimplemented("not for weft-node"))
    }
}
