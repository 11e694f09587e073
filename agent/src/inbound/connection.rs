//! A connection to the pod: the policy of its port, mesh TLS or none, and what it carries.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::http::HeaderValue;
use tokio::net::TcpStream;
use tracing::debug;
use weft_api::model::Identity;

use super::{Inbound, direct, http, permit::Permits, tcp};
use crate::{
    discovery::{
        INBOUND_WAIT, Watched,
        model::{InboundServer, Protocol},
    },
    metrics::{NoServerTls, ServerLabels, ServerTls, TcpLabels},
    policy::{authz::Proof, limit::Permit},
    sockets::listeners::Accepted,
    tls,
    transport::{
        counted::{Counted, Opened},
        detect,
        header::Session,
        io::{Io, Rewind},
        pool::Client,
        serve,
    },
};

/// One connection to the pod, past its TLS.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) inbound: Arc<Inbound>,
    pub(super) client: SocketAddr,
    /// The pod's address and the application's port.
    pub(super) target: SocketAddr,
    pub(super) tls: ServerTls,
    pub(super) policy: Arc<Watched<InboundServer>>,
    /// What the application learns of the client.
    pub(super) client_id: Option<HeaderValue>,
    pub(super) application: Arc<Client>,
    pub(super) permits: Permits,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Carries {
    Http(Session),
    Bytes,
}

/// Serves a connection to the pod until it ends.
pub(super) async fn serve(inbound: Arc<Inbound>, accepted: Accepted) {
    let Accepted {
        stream,
        client,
        original_dst: target,
    } = accepted;
    let pod = Arc::clone(&inbound.pod);
    let error = |label| pod.metrics.inbound_tcp_error(label, target);
    if !pod.workload.ips.is_empty() && !pod.workload.ips.contains(&target.ip()) {
        debug!(%client, %target, "refused: not an address of the pod");
        return error("unexpected");
    }
    let Some(_permit) = pod.limits.connections.acquire() else {
        return error("loadshed");
    };
    let stream = Rewind::new(stream);
    if target.port() == pod.workload.settings.load().inbound_port {
        return Box::pin(direct::serve(inbound, stream, client, target)).await;
    }

    let policy = inbound.policy(target.port());
    let Some(server) = policy.ready(INBOUND_WAIT).await else {
        debug!(%client, %target, "policy is not known yet");
        return error("unexpected");
    };
    let accepted = match server.protocol {
        Protocol::Opaque => Ok((stream.into(), ServerTls::None(NoServerTls::PortSkipped))),
        Protocol::Detect | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc | Protocol::Tls => {
            Box::pin(accept(&inbound, stream)).await
        }
    };
    let (mut io, tls) = match accepted {
        Ok(accepted) => accepted,
        Err(label) => return error(label),
    };
    let Some(carries) = protocol(&mut io, &tls, &server).await else {
        return;
    };
    let connection = Connection::new(inbound, client, target, tls, policy);
    connection.serve(io, carries, &server).await;
}

/// Terminates mesh TLS that is meant for the pod; everything else is left as it is.
async fn accept(
    inbound: &Inbound,
    mut stream: Rewind<TcpStream>,
) -> Result<(Io, ServerTls), &'static str> {
    let workload = &inbound.pod.workload;
    let limit = workload.settings.load().detect_timeout;
    let hello = detect::tls(&mut stream, limit).await.map_err(|error| {
        debug!(%error, "TLS cannot be detected");
        error.label()
    })?;
    match hello {
        detect::TlsHello::Sni(sni) if *sni == *workload.identity.as_str() => {
            let (io, accepted) = terminate(inbound, stream, limit).await?;
            Ok((io, ServerTls::Established(accepted.client)))
        }
        detect::TlsHello::Sni(sni) => Ok((stream.into(), ServerTls::Opaque { sni })),
        detect::TlsHello::NotTls | detect::TlsHello::NoSni => {
            Ok((stream.into(), ServerTls::None(NoServerTls::NoTlsFromRemote)))
        }
    }
}

/// Does the handshake of a connection that asks for the pod's identity.
pub(super) async fn terminate(
    inbound: &Inbound,
    stream: Rewind<TcpStream>,
    limit: Duration,
) -> Result<(Io, tls::server::Accepted), &'static str> {
    let pod = &inbound.pod;
    let _handshake: Permit<'_> = pod.limits.handshakes.acquire().ok_or("loadshed")?;
    let credentials = pod.identity.current().ok_or_else(|| {
        debug!("no certificate for the pod yet");
        "unexpected"
    })?;
    let handshake = tls::server::accept(stream, &credentials);
    match tokio::time::timeout(limit, handshake).await {
        Ok(Ok((stream, accepted))) => Ok((stream.into(), accepted)),
        Ok(Err(error)) => {
            debug!(%error, "no mesh TLS");
            Err("i/o")
        }
        Err(_elapsed) => Err("tls detection timeout"),
    }
}

/// Finds out what the connection carries; `None` if it ended before it carried anything.
async fn protocol(io: &mut Io, tls: &ServerTls, server: &InboundServer) -> Option<Carries> {
    let is_meshed = matches!(tls, ServerTls::Established(_));
    if matches!(tls, ServerTls::Opaque { .. }) {
        return Some(Carries::Bytes);
    }
    let http1 = Carries::Http(Session::Http1);
    let http2 = Carries::Http(Session::Http2);
    Some(match server.protocol {
        Protocol::Opaque | Protocol::Tls => Carries::Bytes,
        Protocol::Http1 if !is_meshed => http1,
        Protocol::Http2 | Protocol::Grpc => http2,
        // A peer may have put the requests into HTTP/2.
        Protocol::Http1 => match detect::http(io, server.detect_timeout).await {
            detect::Http::Http2 => http2,
            detect::Http::Http1 | detect::Http::NotHttp | detect::Http::TimedOut => http1,
            detect::Http::Eof => return None,
        },
        Protocol::Detect => match detect::http(io, server.detect_timeout).await {
            detect::Http::Http1 => http1,
            detect::Http::Http2 => http2,
            detect::Http::NotHttp | detect::Http::TimedOut => Carries::Bytes,
            detect::Http::Eof => return None,
        },
    })
}

impl Connection {
    pub(super) fn new(
        inbound: Arc<Inbound>,
        client: SocketAddr,
        target: SocketAddr,
        tls: ServerTls,
        policy: Arc<Watched<InboundServer>>,
    ) -> Self {
        let client_id = match &tls {
            ServerTls::Established(Some(client)) => HeaderValue::from_str(client.as_str()).ok(),
            ServerTls::Established(None) | ServerTls::None(_) | ServerTls::Opaque { .. } => None,
        };
        Self {
            application: inbound.application(target),
            permits: Permits::default(),
            inbound,
            client,
            target,
            tls,
            policy,
            client_id,
        }
    }

    /// What the client has proven about itself.
    pub(super) fn proof(&self) -> Proof<'_> {
        match &self.tls {
            ServerTls::Established(client) => Proof::Tls(client.as_ref()),
            ServerTls::None(_) | ServerTls::Opaque { .. } => Proof::Plain,
        }
    }

    /// Who the client is, for logs.
    pub(super) fn client_name(&self) -> &str {
        self.proof_identity().map_or("", Identity::as_str)
    }

    fn proof_identity(&self) -> Option<&Identity> {
        match self.proof() {
            Proof::Tls(client) => client,
            Proof::Plain => None,
        }
    }

    pub(super) async fn serve(self, io: Io, carries: Carries, server: &InboundServer) {
        let pod = Arc::clone(&self.inbound.pod);
        let opened = Opened::new(pod.metrics.tcp(&TcpLabels::InboundSource {
            target: self.target,
            tls: self.tls.clone(),
            server: ServerLabels::new(&server.meta, self.target.port()),
        }));
        let drain = self.inbound.drain.clone();
        match carries {
            Carries::Bytes => Box::pin(tcp::serve(io, opened, &self)).await,
            Carries::Http(Session::Http1) => {
                let answer = |request| http::serve(request, &self);
                Box::pin(serve::http1(Counted::new(io, opened), &drain, answer)).await;
            }
            Carries::Http(Session::Http2) => {
                let connection = Arc::new(self);
                let answer = move |request| {
                    let connection = Arc::clone(&connection);
                    async move { http::serve(request, &connection).await }
                };
                let io = Counted::new(io, opened);
                Box::pin(serve::http2(io, &drain, &pod.connections, answer)).await;
            }
        }
    }
}
