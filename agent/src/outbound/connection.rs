//! A captured connection: where it was going, whether that is allowed, and what it carries.

use std::{net::SocketAddr, sync::Arc};

use tracing::debug;

use super::{Outbound, backend::Backend, http, tcp};
use crate::{
    discovery::{
        OUTBOUND_WAIT,
        model::{OutboundTarget, Protocol},
    },
    metrics::TcpLabels,
    sockets::listeners::Accepted,
    transport::{
        counted::{Counted, Opened},
        detect,
        io::Io,
        serve,
    },
};

/// One captured connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) outbound: Arc<Outbound>,
    pub(super) backend: Arc<Backend>,
    /// Where the client wanted to go.
    pub(super) destination: SocketAddr,
}

/// What a connection carries.
enum Carries {
    Http1,
    Http2,
    Bytes,
}

/// Serves a captured connection until it ends.
pub(super) async fn serve(outbound: Arc<Outbound>, accepted: Accepted) {
    let Accepted {
        stream,
        client,
        original_dst: destination,
    } = accepted;
    let pod = Arc::clone(&outbound.pod);
    let error = |label| pod.metrics.outbound_tcp_error(label, destination);
    // Capture never takes loopback connections, so this one was made to the listener itself.
    if destination.ip().is_loopback() || destination.ip().is_unspecified() {
        debug!(%client, %destination, "refused: it would loop");
        return error("unexpected");
    }
    let Some(_permit) = pod.limits.connections.acquire() else {
        return error("loadshed");
    };
    let source = pod.metrics.tcp(&TcpLabels::OutboundSource {
        target: destination,
    });
    let opened = Opened::new(source);

    let backend = outbound.backend(destination);
    let Some(target) = backend.watched.ready(OUTBOUND_WAIT).await else {
        // It may be a meshed service: nothing leaves the mesh because nobody answers.
        debug!(%client, %destination, "destination is not known yet");
        return error("unexpected");
    };
    let mut io = Io::from(stream);
    let Some(carries) = protocol(&mut io, &target).await else {
        return;
    };
    let connection = Connection {
        outbound,
        backend,
        destination,
    };
    let drain = connection.outbound.drain.clone();
    match carries {
        Carries::Bytes => Box::pin(tcp::serve(io, opened, &connection)).await,
        Carries::Http1 => {
            let io = Counted::new(io, opened);
            let answer = |request| http::serve(request, &connection);
            Box::pin(serve::http1(io, &drain, answer)).await;
        }
        Carries::Http2 => {
            let io = Counted::new(io, opened);
            let connection = Arc::new(connection);
            let answer = move |request| {
                let connection = Arc::clone(&connection);
                async move { http::serve(request, &connection).await }
            };
            Box::pin(serve::http2(io, &drain, &pod.connections, answer)).await;
        }
    }
}

/// Finds out what the connection carries; `None` if it ended before it carried anything.
async fn protocol(io: &mut Io, target: &OutboundTarget) -> Option<Carries> {
    Some(match target.protocol {
        Protocol::Http1 => Carries::Http1,
        Protocol::Http2 | Protocol::Grpc => Carries::Http2,
        Protocol::Opaque | Protocol::Tls => Carries::Bytes,
        Protocol::Detect => match detect::http(io, target.detect_timeout).await {
            detect::Http::Http1 => Carries::Http1,
            detect::Http::Http2 => Carries::Http2,
            detect::Http::NotHttp => Carries::Bytes,
            detect::Http::TimedOut => {
                debug!("nothing to detect in time, going on as opaque");
                Carries::Bytes
            }
            detect::Http::Eof => return None,
        },
    })
}
