//! The daemon's end of `RUN_DIR/cni.sock`: ADD, DEL, CHECK, GC, STATUS and what people ask.
//!
//! Only root may connect. A connection carries one request of bounded size, and is given up when
//! it dawdles. DEL never fails: a sandbox that is not known is gone already.

use std::{io, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use weft_runtime::logging::report;

use super::protocol::{
    Attachment, Failure, MAX_BYTES, MISSED, NodeStatus, Request, Response, SOCKET, code,
};
use crate::{
    lend::Hub,
    pods::{Announcement, Pods, RequestError, desired::Desired, enrol::EnrolError},
};

/// How long a client may take to write its request and to read its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Server {
    listener: UnixListener,
    answers: Arc<Answers>,
}

/// Whom the server asks.
pub struct Answers {
    /// The node's name.
    pub node: String,
    /// The pods.
    pub pods: Arc<Pods>,
    /// What the controller wants.
    pub desired: Arc<Desired>,
    /// The agents.
    pub hub: Arc<Hub>,
    /// The run directory.
    pub run_dir: PathBuf,
}

impl Server {
    /// Binds the socket, in place of one that a former process left.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn bind(answers: Answers) -> anyhow::Result<Self> {
        let path = answers.run_dir.join(SOCKET);
        let listener = bound(&path).with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self {
            listener,
            answers: Arc::new(answers),
        })
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// When the socket cannot be accepted from.
    pub async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let connections = TaskTracker::new();
        self.answers.catch_up().await;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, _address) = accepted.context("accept a CNI request")?;
            let answers = Arc::clone(&self.answers);
            connections.spawn(async move {
                if let Err(error) = answers.serve(stream).await {
                    warn!(%error, "CNI request was not answered");
                }
            });
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

impl Answers {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = Vec::new();
        let mut reader = BufReader::new(read.take(MAX_BYTES));
        timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
        let response = match serde_json::from_slice(&line) {
            Ok(request) => self.answer(request).await,
            Err(error) => Response::Failed(Failure {
                code: code::DECODE,
                msg: "weft-node did not understand the request".to_owned(),
                details: error.to_string(),
            }),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        timeout(PATIENCE, write.write_all(&text)).await?
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Add(attachment) => {
                let pod = format!("{}/{}", attachment.pod_namespace, attachment.pod_name);
                debug!(pod, "CNI ADD");
                outcome(self.pods.add(announcement(attachment)).await)
            }
            Request::Del(attachment) => {
                debug!(container_id = attachment.container_id, "CNI DEL");
                let (container, uid) = (&attachment.container_id, &attachment.pod_uid);
                self.pods.delete(container, uid).await;
                Response::Done
            }
            Request::Check(attachment) => {
                let (container, uid) = (&attachment.container_id, &attachment.pod_uid);
                outcome(self.pods.check(container, uid).await)
            }
            Request::Gc { valid } => {
                self.pods.collect_garbage(&valid).await;
                Response::Done
            }
            Request::Ready => Response::Done,
            Request::Status => Response::Status(NodeStatus {
                node: self.node.clone(),
                controller_connected: self.desired.is_connected(),
                agents: self.hub.agents(),
                pods: self.pods.status(),
            }),
        }
    }

    /// Learns of the pods that the plugin let start while no daemon ran.
    async fn catch_up(&self) {
        let folder = self.run_dir.join(MISSED);
        let Ok(entries) = std::fs::read_dir(&folder) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let attachment = std::fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<Attachment>(&text).ok());
            if let Some(attachment) = attachment {
                info!(pod = attachment.pod_name, "pod started while no daemon ran");
                if let Err(error) = self.pods.note(announcement(attachment)).await {
                    warn!(error = %report(&error), "missed pod is not taken up");
                }
            }
            if let Err(error) = std::fs::remove_file(&path) {
                warn!(%error, path = %path.display(), "missed ADD cannot be removed");
            }
        }
    }
}

fn announcement(attachment: Attachment) -> Announcement {
    Announcement {
        uid: attachment.pod_uid,
        namespace: attachment.pod_namespace,
        name: attachment.pod_name,
        container_id: attachment.container_id,
        ifname: attachment.ifname,
        netns: attachment.netns,
        ips: attachment.ips,
        cgroup: attachment.cgroup,
    }
}

fn outcome(result: Result<(), RequestError>) -> Response {
    let Err(error) = result else {
        return Response::Done;
    };
    let code = match &error {
        RequestError::Invalid(_) => code::INVALID_ENVIRONMENT,
        RequestError::TryAgain(_)
        | RequestError::Enrol {
            source: EnrolError::CalledOff,
            ..
        } => code::TRY_AGAIN,
        RequestError::Enrol { source, .. } if source.is_final() => code::NOT_MESHED,
        RequestError::Enrol { .. } => code::TRY_AGAIN,
    };
    let msg = error.to_string();
    let whole = report(&error).to_string();
    let details = whole.strip_prefix(&msg).unwrap_or_default();
    Response::Failed(Failure {
        code,
        msg,
        details: details.trim_start_matches(": ").to_owned(),
    })
}

fn bound(path: &std::path::Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
