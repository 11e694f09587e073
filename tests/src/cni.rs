//! Plays the kubelet: calls the real `weft-cni` as a chained plugin, with what the plugin before it
//! would have answered.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{node::Node, pod::Pod, process::Launch};

/// A container runtime gives a plugin about this long.
const LIMIT: Duration = Duration::from_secs(60);

/// One call of the plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC` or `VERSION`.
    pub command: &'static str,
    /// Path of the namespace; empty for a DEL after the namespace has gone.
    pub netns: String,
    /// Id of the sandbox.
    pub container: String,
    /// Uid in `K8S_POD_UID`.
    pub uid: String,
}

impl Call {
    /// The call a kubelet makes for this pod.
    pub fn of(command: &'static str, pod: &Pod) -> Self {
        Self {
            command,
            netns: pod.netns().path().display().to_string(),
            container: format!("sandbox-{}", pod.spec().uid),
            uid: pod.spec().uid.clone(),
        }
    }

    /// Calls the plugin and gives what it printed.
    ///
    /// # Errors
    /// The error that the plugin reported, or that it could not be run.
    pub fn invoke(&self, node: &Node, pod: &Pod) -> Result<Value> {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={};K8S_POD_INFRA_CONTAINER_ID={}",
            pod.spec().namespace,
            pod.spec().name,
            self.uid,
            self.container,
        );
        let config = config(node, pod);
        let output = Launch::new(plugin(node)?)
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", args)
            .netns(node.netns())
            .stdin(serde_json::to_vec(&config)?)
            .output(LIMIT)?;
        let what = format!("weft-cni {} of {}", self.command, pod.spec().name);
        if !output.status.success() {
            bail!("{what}: {}{}", output.stdout.trim(), output.stderr.trim());
        }
        if output.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&output.stdout).with_context(|| format!("{what}: {}", output.stdout))
    }
}

fn plugin(node: &Node) -> Result<PathBuf> {
    node.binary("weft-cni")
}

/// The plugin's configuration as a runtime passes it, with the answer of the plugin before.
fn config(node: &Node, pod: &Pod) -> Value {
    let cgroup = pod.cgroup_below_mount();
    json!({
        "cniVersion": "1.0.0",
        "name": "weft-tests",
        "type": "weft-cni",
        "socket": node.run_dir().join("cni.sock"),
        "capabilities": {"cgroupPath": true},
        "runtimeConfig": {"cgroupPath": cgroup},
        "prevResult": previous_result(pod),
    })
}

/// What a bridge plugin answers after it has given the pod its interface.
pub fn previous_result(pod: &Pod) -> Value {
    let ips: Vec<Value> = pod
        .ips()
        .iter()
        .zip(pod.gateways())
        .map(|(ip, gateway)| {
            json!({
                "address": format!("{ip}/{}", crate::address::prefix_length(*ip)),
                "gateway": gateway,
                "interface": 1,
            })
        })
        .collect();
    let routes: Vec<Value> = pod
        .ips()
        .iter()
        .map(|ip| json!({"dst": if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }}))
        .collect();
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": pod.host_device()},
            {"name": "eth0", "sandbox": pod.netns().path()},
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    })
}
