//! Who may reach a port of a pod, fed by `InboundServerPolicies.WatchPort`.

use std::{
    ops::ControlFlow,
    sync::{Arc, Weak},
    time::Duration,
};

use linkerd2_proxy_api::inbound::{
    PortSpec, Server, inbound_server_policies_client::InboundServerPoliciesClient,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Watched,
    client::Client,
    convert,
    model::InboundServer,
    report::Reporter,
    stream::{Event, Follow},
    tokens,
};
use crate::metrics::Stream;

/// How long connections are held for the first answer before the pod's default policy is used.
const HOLD: Duration = Duration::from_secs(1);

/// What to watch.
pub(super) struct Question {
    pub(super) namespace: Arc<str>,
    pub(super) pod: Arc<str>,
    pub(super) port: u16,
}

/// Keeps a server up to date until nobody holds it.
///
/// `default` is what holds when nothing was heard in time, until something is.
pub(super) async fn watch(
    client: Client,
    question: Question,
    default: impl FnOnce() -> InboundServer + Send,
    server: Weak<Watched<InboundServer>>,
    stop: CancellationToken,
) {
    let Question {
        namespace,
        pod,
        port,
    } = question;
    let subject = format!("{namespace}/{pod}:{port}");
    let mut report = Reporter::new(&client.metrics, Stream::InboundPolicy, &subject);
    let follow = Follow {
        stream: Stream::InboundPolicy,
        expects_message: true,
        // A pod that has just been made may not be known to the policy index yet.
        ask_again: Duration::from_secs(2),
    };
    let open = || async {
        let request = client.request(PortSpec {
            workload: tokens::workload(&namespace, &pod),
            port: port.into(),
        });
        let mut policies = InboundServerPoliciesClient::new(client.channel.clone());
        policies.watch_port(request.await?).await
    };
    let apply = |event: Event<Server>| {
        let Some(server) = server.upgrade() else {
            return ControlFlow::Break(());
        };
        if let Event::Message { message, .. } = event {
            match convert::server(message, port) {
                Ok(next) => {
                    report.applied();
                    if server.load().is_none_or(|known| *known != next) {
                        server.publish(next);
                    }
                }
                Err(error) => report.refused(error),
            }
        }
        ControlFlow::Continue(())
    };
    let fall_back = async {
        let elapsed = stop.run_until_cancelled(sleep(HOLD)).await;
        if elapsed.is_some()
            && let Some(server) = server.upgrade()
            && server.version() == 0
        {
            server.publish(default());
        }
    };
    tokio::join!(follow.run(&client, &stop, open, apply), fall_back);
}
