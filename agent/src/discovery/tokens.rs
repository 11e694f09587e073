//! The strings by which the controller knows who asks.

use serde_json::Value;

/// What stands where the API wants a pod's name. It takes it for its log alone: answers depend on
/// namespace and node, and are shared by all pods that have both in common.
const POD: &str = "weft-agent";

/// `context_token` of the destination API.
pub(super) fn context(namespace: &str, node: &str) -> String {
    let (ns, node, pod) = (text(namespace), text(node), text(POD));
    format!(r#"{{"ns":{ns},"nodeName":{node},"pod":{pod}}}"#)
}

/// `source_workload` of the outbound policy API.
pub(super) fn source(namespace: &str) -> String {
    workload(namespace, POD)
}

/// `workload` of the inbound policy API.
pub(super) fn workload(namespace: &str, pod: &str) -> String {
    let (ns, pod) = (text(namespace), text(pod));
    format!(r#"{{"ns":{ns},"pod":{pod}}}"#)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_json_as_the_controller_reads_it() {
        let context = context("shop", "n\"1");
        assert_eq!(
            context,
            r#"{"ns":"shop","nodeName":"n\"1","pod":"weft-agent"}"#
        );
        assert_eq!(workload("shop", "web-1"), r#"{"ns":"shop","pod":"web-1"}"#);
        assert_eq!(source("shop"), r#"{"ns":"shop","pod":"weft-agent"}"#);
    }
}
