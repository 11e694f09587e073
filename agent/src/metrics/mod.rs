//! What is counted for each pod, under the names that Linkerd's dashboards know.
//!
//! Whoever serves connections asks [`PodMetrics`] for a handle once per set of labels and keeps
//! it; counting is then a few atomic additions. A pod's series go with its [`PodMetrics`]. Text is
//! made by `render`, for one pod or for all pods of the node; `agent` holds what the agent counts
//! about itself (`weft_*`, `process_*`), through prometheus-client.

mod agent;
mod cells;
mod counter;
mod family;
mod histogram;
mod http;
mod labels;
mod node;
mod pod;
mod process;
mod render;
mod series;
mod tcp;
#[cfg(test)]
mod tests;

pub use self::{
    agent::{AgentMetrics, Stream, StreamLabels, Update, UpdateLabels},
    counter::Counter,
    http::{Classification, HttpMetrics, Outcome},
    labels::{
        AuthzLabels, ClientTls, InboundLabels, NoClientTls, NoServerTls, OutboundLabels,
        RouteLabels, ServerLabels, ServerTls, TcpLabels,
    },
    node::{Certificate, NodeMetrics, PodState},
    pod::PodMetrics,
    tcp::TcpMetrics,
};
