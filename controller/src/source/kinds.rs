//! Kinds that manifests of a cluster hold beside those that the index knows.
//!
//! They are here so that a folder meant for `kubectl apply` can be used as it is, while a kind
//! that exists nowhere, which is mostly a typing error, is reported.

/// What to do with a document by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Somebody else's matter.
    Ignored,
    /// Would restrict or change traffic, and this version does not apply it.
    NotApplied,
}

/// Looks a kind up.
pub(super) fn find(api_version: &str, kind: &str) -> Option<Known> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let (_, known, kinds) = KINDS.iter().find(|(name, _, _)| *name == group)?;
    kinds.split(' ').any(|one| one == kind).then_some(*known)
}

const KINDS: &[(&str, Known, &str)] = &[
    (
        "",
        Known::Ignored,
        "Binding ConfigMap Endpoints Event LimitRange Node PersistentVolume \
         PersistentVolumeClaim PodTemplate ReplicationController ResourceQuota Secret",
    ),
    (
        "apps",
        Known::Ignored,
        "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet",
    ),
    ("batch", Known::Ignored, "CronJob Job"),
    ("autoscaling", Known::Ignored, "HorizontalPodAutoscaler"),
    (
        "policy",
        Known::Ignored,
        "PodDisruptionBudget PodSecurityPolicy",
    ),
    (
        "rbac.authorization.k8s.io",
        Known::Ignored,
        "ClusterRole ClusterRoleBinding Role RoleBinding",
    ),
    (
        "networking.k8s.io",
        Known::Ignored,
        "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
    ),
    (
        "apiextensions.k8s.io",
        Known::Ignored,
        "CustomResourceDefinition",
    ),
    ("apiregistration.k8s.io", Known::Ignored, "APIService"),
    (
        "admissionregistration.k8s.io",
        Known::Ignored,
        "MutatingWebhookConfiguration ValidatingAdmissionPolicy \
         ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration",
    ),
    ("coordination.k8s.io", Known::Ignored, "Lease"),
    ("events.k8s.io", Known::Ignored, "Event"),
    ("node.k8s.io", Known::Ignored, "RuntimeClass"),
    ("scheduling.k8s.io", Known::Ignored, "PriorityClass"),
    (
        "storage.k8s.io",
        Known::Ignored,
        "CSIDriver CSINode StorageClass VolumeAttachment",
    ),
    (
        "cert-manager.io",
        Known::Ignored,
        "Certificate CertificateRequest ClusterIssuer Issuer",
    ),
    (
        "monitoring.coreos.com",
        Known::Ignored,
        "PodMonitor PrometheusRule ServiceMonitor",
    ),
    ("multicluster.linkerd.io", Known::Ignored, "Link"),
    (
        "gateway.networking.k8s.io",
        Known::NotApplied,
        "GRPCRoute Gateway GatewayClass HTTPRoute ReferenceGrant TCPRoute TLSRoute UDPRoute",
    ),
    (
        "policy.linkerd.io",
        Known::NotApplied,
        "AuthorizationPolicy EgressNetwork HTTPLocalRateLimitPolicy HTTPRoute \
         MeshTLSAuthentication NetworkAuthentication Server ServerAuthorization",
    ),
    ("linkerd.io", Known::NotApplied, "ServiceProfile"),
    ("split.smi-spec.io", Known::NotApplied, "TrafficSplit"),
    ("workload.linkerd.io", Known::NotApplied, "ExternalWorkload"),
];
