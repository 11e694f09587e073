//! `weft diagnostics endpoints`: the addresses behind an authority, as a node would get them.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, bail};
use linkerd2_proxy_api::{
    destination::{
        GetDestination, Update, WeightedAddr, destination_client::DestinationClient,
        protocol_hint::Protocol, update,
    },
    net::TcpAddress,
};
use serde::Serialize;
use tokio::time::timeout;

use super::ControllerArgs;
use crate::table;

/// Shown under the help text.
pub(crate) const EXAMPLES: &str = "\
Examples:
  # the endpoints of a service
  weft diagnostics endpoints web.shop.svc.cluster.local:80
  # with everything discovery says about them
  weft diagnostics endpoints -o json web.shop.svc.cluster.local:80";

/// Flags of `weft diagnostics endpoints`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names and ports to look up.
    #[arg(required = true, value_name = "AUTHORITY")]
    authorities: Vec<String>,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Context token to send, to see what a certain client would: `{"ns":"shop","nodeName":"n1"}`.
    #[arg(long, default_value = "")]
    token: String,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// One endpoint, with the field names of Linkerd's JSON.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    namespace: String,
    ip: IpAddr,
    port: u16,
    pod: String,
    service: String,
    weight: u32,
    protocol: &'static str,
    identity: Option<String>,
    labels: BTreeMap<String, String>,
}

/// Looks up and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = DestinationClient::new(args.controller.connect()?);
    let mut rows = Vec::new();
    for authority in &args.authorities {
        let request = GetDestination {
            scheme: String::new(),
            path: authority.clone(),
            context_token: args.token.clone(),
        };
        let update = timeout(PATIENCE, first_update(client.clone(), request))
            .await
            .with_context(|| format!("no answer about {authority} within {PATIENCE:?}"))??;
        rows.extend(rows_of(authority, update));
    }
    rows.sort();
    match args.output.as_str() {
        "json" => println!("{}", serde_json::to_string_pretty(&rows)?),
        _ if rows.is_empty() => println!("No endpoints found."),
        _ => print!("{}", render(&rows)),
    }
    Ok(())
}

/// How long a lookup may take: discovery says nothing about a service that has no endpoints yet.
const PATIENCE: Duration = Duration::from_secs(5);

async fn first_update<S>(
    mut client: DestinationClient<S>,
    request: GetDestination,
) -> anyhow::Result<Update>
where
    S: tonic::client::GrpcService<tonic::body::Body>,
    S::Error: Into<tonic::codegen::StdError>,
    S::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let error =
        |status: tonic::Status| anyhow::anyhow!("Destination API error: {}", status.message());
    let mut updates = client.get(request).await.map_err(error)?.into_inner();
    match updates.message().await.map_err(error)? {
        Some(update) => Ok(update),
        None => bail!("Destination API error: the stream ended"),
    }
}

fn rows_of(authority: &str, update: Update) -> Vec<Row> {
    let Some(update::Update::Add(set)) = update.update else {
        return Vec::new();
    };
    let label = |name: &str| set.metric_labels.get(name).cloned().unwrap_or_default();
    let (service, namespace) = (label("service"), label("namespace"));
    let service = match service.is_empty() {
        true => authority.to_owned(),
        false => format!("{service}.{namespace}"),
    };
    set.addrs
        .into_iter()
        .filter_map(|addr| row(&service, &namespace, addr))
        .collect()
}

fn row(service: &str, namespace: &str, addr: WeightedAddr) -> Option<Row> {
    let TcpAddress { ip, port } = addr.addr?;
    let hint = addr.protocol_hint.and_then(|hint| hint.protocol);
    Some(Row {
        namespace: namespace.to_owned(),
        ip: IpAddr::try_from(ip?).ok()?,
        port: u16::try_from(port).ok()?,
        pod: addr.metric_labels.get("pod").cloned().unwrap_or_default(),
        service: service.to_owned(),
        weight: addr.weight,
        protocol: match hint {
            Some(Protocol::H2(_)) => "h2",
            Some(Protocol::Opaque(_)) => "opaque",
            None => "",
        },
        identity: addr
            .tls_identity
            .and_then(|tls| tls.server_name)
            .map(|name| name.name),
        labels: addr.metric_labels.into_iter().collect(),
    })
}

fn render(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                row.namespace.clone(),
                row.ip.to_string(),
                row.port.to_string(),
                row.pod.clone(),
                row.service.clone(),
            ]
        })
        .collect();
    table::render(["NAMESPACE", "IP", "PORT", "POD", "SERVICE"], &cells)
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::destination::WeightedAddrSet;

    use super::*;

    #[test]
    fn endpoints_print_as_a_table() {
        let addr = WeightedAddr {
            addr: Some(TcpAddress {
                ip: Some(IpAddr::from([10, 1, 0, 7]).into()),
                port: 8080,
            }),
            metric_labels: [("pod".to_owned(), "web-1".to_owned())].into(),
            ..WeightedAddr::default()
        };
        let set = WeightedAddrSet {
            addrs: vec![addr],
            metric_labels: [
                ("namespace".to_owned(), "shop".to_owned()),
                ("service".to_owned(), "web".to_owned()),
            ]
            .into(),
        };
        let update = Update {
            update: Some(update::Update::Add(set)),
        };
        assert_eq!(
            render(&rows_of("web.shop.svc.cluster.local:80", update)),
            "NAMESPACE   IP         PORT   POD     SERVICE\n\
             shop        10.1.0.7   8080   web-1   web.shop\n"
        );
    }
}
