//! What a namespace says about the pods in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::inject;

/// A namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

impl Namespace {
    /// Reads what the index needs.
    pub fn read(namespace: &v1::Namespace) -> Self {
        let annotations = namespace.metadata.annotations.clone().unwrap_or_default();
        let problems = inject::wrong_value(&annotations).into_iter().collect();
        Self {
            labels: namespace.metadata.labels.clone().unwrap_or_default(),
            annotations,
            problems,
        }
    }
}
