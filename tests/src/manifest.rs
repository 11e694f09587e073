//! Kubernetes objects as files, which the standalone controller reads and follows.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::pod::PodSpec;

/// A folder of manifests. A file is replaced whole, so that no reader sees half of one.
#[derive(Clone, Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// Makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes objects as one file of YAML documents.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_norway::to_string(object).context("manifest as YAML")?);
        }
        self.write_text(name, &text)
    }

    /// Writes a file with this text, valid or not.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(format!("{name}.yaml"));
        let aside = self.folder.join(format!(".{name}.new"));
        fs::write(&aside, text).with_context(|| format!("write {}", aside.display()))?;
        fs::rename(&aside, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.folder.join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A ServiceAccount.
pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    })
}

/// A Service with virtual addresses, over the pods labelled `app: NAME`.
pub fn service(namespace: &str, spec: &ServiceSpec, ips: &[IpAddr]) -> Value {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|(port, target)| {
            json!({
                "name": format!("p{port}"),
                "port": port,
                "targetPort": target,
                "protocol": "TCP",
            })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": spec.name, "namespace": namespace, "annotations": annotations(&spec.annotations)},
        "spec": {
            "clusterIP": ips.first(),
            "clusterIPs": ips,
            "selector": {"app": spec.selector},
            "ports": ports,
        },
    })
}

/// What a test says about a Service.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Name.
    pub name: String,
    /// Value of label `app` of the pods behind it.
    pub selector: String,
    /// Port of the service and port of the pods.
    pub ports: Vec<(u16, u16)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
}

impl ServiceSpec {
    /// A service over the pods labelled `app: NAME`, with one port.
    pub fn new(name: &str, port: u16, target: u16) -> Self {
        Self {
            name: name.to_owned(),
            selector: name.to_owned(),
            ports: vec![(port, target)],
            annotations: Vec::new(),
        }
    }
}

/// A pod that runs.
pub fn pod(spec: &PodSpec, ips: &[IpAddr]) -> Value {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| json!({"containerPort": port, "protocol": "TCP"}))
        .collect();
    let pod_ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "uid": spec.uid,
            "labels": {"app": spec.app},
            "annotations": annotations(&spec.all_annotations()),
        },
        "spec": {
            "nodeName": spec.node,
            "serviceAccountName": spec.service_account,
            "containers": [{"name": "app", "image": "app", "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "podIP": ips.first(),
            "podIPs": pod_ips,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn annotations(pairs: &[(String, String)]) -> Value {
    pairs
        .iter()
        .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
