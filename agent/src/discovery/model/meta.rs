//! Which object of the cluster a piece of configuration comes from.

use std::sync::Arc;

/// A reference to a Kubernetes object, or to a default that no object stands for.
///
/// Its parts become metric labels; those that do not apply are empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Meta {
    /// API group; `core` for Services, empty for defaults.
    pub group: Arc<str>,
    /// Kind: `Service`, `HTTPRoute`, `server`, …, or `default`.
    pub kind: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of the object or of the default.
    pub name: Arc<str>,
    /// Section of the object, such as a route rule's name.
    pub section: Arc<str>,
    /// Port, where the object is a service or a server.
    pub port: Option<u16>,
}

impl Meta {
    /// A default that no object stands for.
    pub fn default_named(name: &str) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            group: Arc::clone(&empty),
            kind: "default".into(),
            namespace: Arc::clone(&empty),
            name: name.into(),
            section: empty,
            port: None,
        }
    }
}
