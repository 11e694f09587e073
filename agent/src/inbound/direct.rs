//! A connection to the proxy's own port (4143): mesh TLS, a client certificate and a transport
//! header are a must. The header names the application's port and what is spoken.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;
use tracing::debug;

use super::{
    Inbound,
    connection::{Carries, Connection, terminate},
};
use crate::{
    discovery::INBOUND_WAIT,
    metrics::ServerTls,
    transport::{
        detect::{self, TlsHello},
        header::{self, TransportHeader},
        io::{Io, Rewind},
    },
};

/// Serves a connection to the proxy's own port until it ends.
pub(super) async fn serve(
    inbound: Arc<Inbound>,
    stream: Rewind<TcpStream>,
    client: SocketAddr,
    local: SocketAddr,
) {
    let pod = Arc::clone(&inbound.pod);
    let error = |label| pod.metrics.inbound_tcp_error(label, local);
    let (io, tls, header) = match Box::pin(accept(&inbound, stream)).await {
        Ok(accepted) => accepted,
        Err(refused) => {
            debug!(%client, reason = refused, "refused");
            return error(refused);
        }
    };
    let target = SocketAddr::new(local.ip(), header.port.get());
    if target.port() == local.port() || header.name.is_some() {
        debug!(%client, %target, name = header.name.as_deref(), "refused: it would loop, or wants a gateway");
        return error("unexpected");
    }
    let policy = inbound.policy(target.port());
    let Some(server) = policy.ready(INBOUND_WAIT).await else {
        debug!(%client, %target, "policy is not known yet");
        return error("unexpected");
    };
    let carries = header.session.map_or(Carries::Bytes, Carries::Http);
    let connection = Connection::new(inbound, client, target, tls, policy);
    connection.serve(io, carries, &server).await;
}

async fn accept(
    inbound: &Inbound,
    mut stream: Rewind<TcpStream>,
) -> Result<(Io, ServerTls, TransportHeader), &'static str> {
    let workload = &inbound.pod.workload;
    let limit = workload.settings.load().detect_timeout;
    let hello = detect::tls(&mut stream, limit)
        .await
        .map_err(|error| error.label())?;
    let TlsHello::Sni(sni) = hello else {
        return Err("unexpected");
    };
    if *sni != *workload.identity.as_str() {
        return Err("unexpected");
    }
    let (mut io, accepted) = terminate(inbound, stream, limit).await?;
    if accepted.client.is_none() || !accepted.transport_alpn {
        return Err("unexpected");
    }
    let header = header::read(&mut io, limit)
        .await
        .map_err(|error| error.label())?;
    Ok((io, ServerTls::Established(accepted.client), header))
}
