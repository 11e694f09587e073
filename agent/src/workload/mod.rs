//! A pod of this node as the proxy sees it: who it is, and how it wants to be treated now.
//!
//! Identity and addresses stay for the workload's life; settings are replaced whole when the
//! pod's record changes. Pure: sockets, certificates and metrics of a pod live in `context`.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use weft_api::model::{Identity, Pod, PodUid, Settings};

/// One meshed pod.
#[derive(Debug)]
pub struct Workload {
    /// Unique id.
    pub uid: PodUid,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// ServiceAccount, of the pod's namespace.
    pub service_account: Arc<str>,
    /// What the pod's certificate says, and the SNI by which peers ask for it.
    pub identity: Identity,
    /// The pod's addresses as the kernel has them.
    pub ips: Arc<[IpAddr]>,
    /// Owner as metric label and name, for example `deployment` and `web`.
    pub owner: (Arc<str>, Arc<str>),
    /// How the pod wants to be treated.
    pub settings: ArcSwap<Settings>,
}

impl Workload {
    /// Makes a workload of a pod's record and the addresses that its network namespace has.
    ///
    /// Without the latter, those of the record are used.
    pub fn new(pod: &Pod, ips: &[IpAddr]) -> Self {
        let ips = if ips.is_empty() { &pod.ips } else { ips };
        Self {
            uid: pod.uid.clone(),
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            service_account: Arc::clone(&pod.service_account),
            identity: pod.identity.clone(),
            ips: ips.iter().map(|ip| ip.to_canonical()).collect(),
            owner: (Arc::clone(&pod.owner.0), Arc::clone(&pod.owner.1)),
            settings: ArcSwap::from_pointee(pod.settings.clone()),
        }
    }

    /// Whether the address is one of the pod's own, or loopback.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_loopback() || self.ips.contains(&ip)
    }

    /// Replaces the settings by those of a newer record.
    pub fn apply(&self, pod: &Pod) {
        self.settings.store(Arc::new(pod.settings.clone()));
    }
}

#[cfg(test)]
mod tests {
    use weft_api::model::Mesh;

    use super::*;

    #[test]
    fn own_addresses_and_loopback_are_local_in_either_notation() {
        let pod = Pod {
            uid: "3f1c".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            service_account: "web".into(),
            identity: "web.shop.serviceaccount.identity.linkerd.cluster.local"
                .parse()
                .unwrap(),
            ips: vec!["10.1.0.9".parse().unwrap()],
            mesh: Mesh::Meshed,
            settings: Settings::default(),
            owner: ("".into(), "".into()),
        };
        let workload = Workload::new(
            &pod,
            &["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        );
        for (ip, expected) in [
            ("10.1.0.2", true),
            ("::ffff:10.1.0.2", true),
            ("fd00::2", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("10.1.0.9", false),
        ] {
            assert_eq!(workload.is_local(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
