//! Linkerd's policy APIs, inbound and outbound.

use linkerd2_proxy_api::{
    inbound::{PortSpec, Server, inbound_server_policies_server::InboundServerPolicies},
    outbound::{OutboundPolicy, TrafficSpec, outbound_policies_server::OutboundPolicies},
};
use serde::Deserialize;
use tonic::{Request, Response, Status, async_trait};

use super::{
    Context,
    stream::{Messages, follow},
};
use crate::{
    index::NsName,
    translate::{InboundPort, OutboundTarget},
};

#[derive(Clone)]
pub(super) struct Service {
    context: Context,
}

/// How a proxy names its workload.
#[derive(Deserialize)]
struct Workload {
    ns: String,
    #[serde(default)]
    pod: String,
}

impl Service {
    pub(super) const fn new(context: Context) -> Self {
        Self { context }
    }

    fn outbound_view(&self, spec: TrafficSpec) -> Result<OutboundTarget, Status> {
        parse_workload(&spec.source_workload)?;
        Ok(OutboundTarget::parse(spec, &self.context.cluster_domain)?)
    }

    fn watch_outbound(&self, spec: TrafficSpec) -> Result<Messages<OutboundPolicy>, Status> {
        let watched = self.context.hub.watch(&self.outbound_view(spec)?)?;
        let open = self.context.metrics.open_stream("OutboundPolicies.Watch");
        let stop = self.context.stop.clone();
        Ok(follow::<OutboundTarget, _>(
            watched,
            stop,
            open,
            None,
            |policy| vec![OutboundPolicy::clone(policy)],
        ))
    }

    fn get_outbound(&self, spec: TrafficSpec) -> Result<OutboundPolicy, Status> {
        Ok(self.context.hub.ask(&self.outbound_view(spec)?)?)
    }

    fn watch_inbound(&self, spec: &PortSpec) -> Result<Messages<Server>, Status> {
        let watched = self.context.hub.watch(&inbound_view(spec)?)?;
        let metrics = &self.context.metrics;
        let open = metrics.open_stream("InboundServerPolicies.WatchPort");
        let stop = self.context.stop.clone();
        Ok(follow::<InboundPort, _>(
            watched,
            stop,
            open,
            None,
            |server| vec![Server::clone(server)],
        ))
    }

    fn get_inbound(&self, spec: &PortSpec) -> Result<Server, Status> {
        Ok(self.context.hub.ask(&inbound_view(spec)?)?)
    }
}

#[async_trait]
impl OutboundPolicies for Service {
    type WatchStream = Messages<OutboundPolicy>;

    async fn get(&self, spec: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        let result = self.get_outbound(spec.into_inner());
        let metrics = &self.context.metrics;
        metrics.counted("OutboundPolicies.Get", result.map(Response::new))
    }

    async fn watch(
        &self,
        spec: Request<TrafficSpec>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let result = self.watch_outbound(spec.into_inner());
        let metrics = &self.context.metrics;
        metrics.counted("OutboundPolicies.Watch", result.map(Response::new))
    }
}

#[async_trait]
impl InboundServerPolicies for Service {
    type WatchPortStream = Messages<Server>;

    async fn get_port(&self, spec: Request<PortSpec>) -> Result<Response<Server>, Status> {
        let result = self.get_inbound(spec.get_ref());
        let metrics = &self.context.metrics;
        metrics.counted("InboundServerPolicies.GetPort", result.map(Response::new))
    }

    async fn watch_port(
        &self,
        spec: Request<PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        let result = self.watch_inbound(spec.get_ref());
        let metrics = &self.context.metrics;
        metrics.counted("InboundServerPolicies.WatchPort", result.map(Response::new))
    }
}

fn inbound_view(spec: &PortSpec) -> Result<InboundPort, Status> {
    let port = u16::try_from(spec.port).ok().filter(|port| *port != 0);
    let port = port
        .ok_or_else(|| Status::invalid_argument(format!("port {} is not 1 to 65535", spec.port)))?;
    let workload = parse_workload(&spec.workload)?;
    Ok(InboundPort {
        pod: NsName::new(workload.ns, workload.pod),
        port,
    })
}

/// `{"ns":"x","pod":"y"}`, or the older `x:y`.
fn parse_workload(text: &str) -> Result<Workload, Status> {
    let workload = match text.split_once(':') {
        Some((ns, pod)) if !text.starts_with('{') => Ok(Workload {
            ns: ns.to_owned(),
            pod: pod.to_owned(),
        }),
        Some(_) | None => serde_json::from_str(text).map_err(|error| error.to_string()),
    };
    workload.map_err(|error| Status::invalid_argument(format!("Invalid workload: {error}")))
}
