//! What clients are told, for each shape of service and pod.

use linkerd2_proxy_api::{
    destination::{WeightedAddr, protocol_hint::Protocol, tls_identity::Strategy},
    inbound::{
        Server,
        authn::{Permit, permit_mesh_tls::Clients},
        proxy_protocol::Kind as Inbound,
    },
    meta::metadata,
    outbound::{OutboundPolicy, TrafficSpec, proxy_protocol::Kind as Outbound, traffic_spec},
};
use tonic::Code;

use super::*;
use crate::{
    index::{Cluster, Index},
    source::objects,
};

const DOMAIN: &str = "cluster.local";

const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {linkerd.io/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {config.linkerd.io/opaque-ports: 'raw'}}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: raw, port: 81}
  - {name: h1, port: 82, appProtocol: http}
  - {name: h2, port: 83, appProtocol: kubernetes.io/h2c}
  - {name: tls, port: 84, appProtocol: https}
  - {name: sql, port: 3306}
  - {name: admin, port: 4191}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web, pod-template-hash: 5d4f}
  annotations:
    config.linkerd.io/opaque-ports: '81'
    config.linkerd.io/skip-inbound-ports: '84'
    config.linkerd.io/proxy-require-identity-inbound-ports: '8443'
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, uid: x, controller: true}]
spec:
  nodeName: n1
  serviceAccountName: web
  hostname: web-1
  subdomain: web
  containers:
  - name: app
    ports: [{containerPort: 8080, hostPort: 30080}, {containerPort: 81}]
    readinessProbe: {httpGet: {path: '/ready?deep=1', port: 8080}}
    livenessProbe: {httpGet: {path: /live, port: 8080}}
status: {phase: Running, hostIP: 192.168.7.1, podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: other}
spec: {nodeName: n2, containers: [{name: app}]}
status: {podIPs: [{ip: 10.1.0.9}]}
";

fn index(edit: impl FnOnce(&mut Cluster)) -> Index {
    let mut cluster = Cluster::default();
    edit(&mut cluster);
    let mut index = Index::new(cluster);
    for (key, object) in objects(WORLD) {
        index.apply(&key, &object);
    }
    index
}

#[test]
fn names_and_addresses_of_destinations_parse() {
    let service = |port, instance: Option<&str>| {
        Ok(Lookup::Service {
            service: NsName::new("shop", "web"),
            port,
            instance: instance.map(ToOwned::to_owned),
        })
    };
    let addr = |text: &str| Ok(Lookup::Addr(text.parse().unwrap()));
    for (path, expected) in [
        ("web.shop.svc.cluster.local", service(80, None)),
        ("web.shop.svc.cluster.local.:8080", service(8080, None)),
        (
            "web-0.web.shop.svc.cluster.local:81",
            service(81, Some("web-0")),
        ),
        ("10.0.0.1:80", addr("10.0.0.1:80")),
        ("10.0.0.1", addr("10.0.0.1:80")),
        ("[fd00::1]:81", addr("[fd00::1]:81")),
        ("fd00::1", addr("[fd00::1]:80")),
    ] {
        assert_eq!(Lookup::parse(path, DOMAIN), expected, "{path}");
    }
    for path in [
        "",
        "foo",
        "web.shop",
        "shop.svc.cluster.local",
        "a.b.web.shop.svc.cluster.local",
        ".shop.svc.cluster.local",
        "web.shop.svc.cluster.local:0",
        "web.shop.svc.cluster.local:http",
        "web.shop.svc.example.com",
        "web.shop.svcxcluster.local",
    ] {
        let refused = Lookup::parse(path, DOMAIN).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "{path}");
        assert_eq!(refused.message, format!("Invalid authority: {path}"));
    }
}

fn endpoint(index: &Index, port: u16) -> WeightedAddr {
    let path = format!("web.shop.svc.cluster.local:{port}");
    let view = ServiceEndpoints::parse(&path, DOMAIN).unwrap();
    view.translate(index).unwrap().endpoints.remove(0).message
}

#[test]
fn endpoints_carry_identity_hints_and_labels() {
    let identity = "web.shop.serviceaccount.identity.linkerd.cluster.local";
    // service port, transport header mode, HTTP/2 upgrade -> identity, hint, inbound port
    for (port, header, h2, expected) in [
        (80, false, false, (true, "none", None)),
        (80, false, true, (true, "h2", None)),
        (80, true, false, (true, "none", Some(4143))),
        (81, false, true, (true, "opaque", Some(4143))),
        (84, true, true, (false, "none", None)),
        (4191, true, false, (true, "none", None)),
    ] {
        let index = index(|cluster| {
            cluster.transport_header = header;
            cluster.h2_upgrade = h2;
        });
        let found = endpoint(&index, port);
        let hint = found.protocol_hint.unwrap_or_default();
        let protocol = match hint.protocol {
            None => "none",
            Some(Protocol::H2(_)) => "h2",
            Some(Protocol::Opaque(_)) => "opaque",
        };
        let inbound = hint
            .opaque_transport
            .map(|transport| transport.inbound_port);
        let tls = found.tls_identity.as_ref();
        assert_eq!((tls.is_some(), protocol, inbound), expected, "port {port}");
        if let Some(tls) = tls {
            assert_eq!(tls.server_name.as_ref().unwrap().name, identity);
            let Some(Strategy::DnsLikeIdentity(name)) = &tls.strategy else {
                panic!("{tls:?}");
            };
            assert_eq!(name.name, identity);
        }
        let labels = found.metric_labels;
        assert_eq!(labels["pod"], "web-1");
        assert_eq!(labels["deployment"], "web");
        assert_eq!(labels["serviceaccount"], "web");
        assert_eq!(labels["control_plane_ns"], "linkerd");
        assert_eq!(found.weight, 10_000);
    }
}

#[test]
fn get_refuses_what_has_no_endpoints_by_nature() {
    let index = index(|_| {});
    for (path, code) in [
        ("10.96.0.1:80", Code::InvalidArgument),
        ("away.shop.svc.cluster.local", Code::InvalidArgument),
        ("nobody.shop.svc.cluster.local", Code::NotFound),
        ("foo", Code::InvalidArgument),
    ] {
        let found = ServiceEndpoints::parse(path, DOMAIN);
        let found = found.and_then(|view| view.translate(&index));
        assert_eq!(found.unwrap_err().code, code, "{path}");
    }
}

#[test]
fn an_instance_is_one_pod_of_a_service() {
    let index = index(|_| {});
    for (instance, count) in [("web-1", 1), ("web-2", 0)] {
        let path = format!("{instance}.web.shop.svc.cluster.local");
        let view = ServiceEndpoints::parse(&path, DOMAIN).unwrap();
        assert_eq!(view.translate(&index).unwrap().endpoints.len(), count);
    }
}

#[test]
fn profiles_tell_services_pods_and_strangers_apart() {
    let index = index(|_| {});
    let name = "web.shop.svc.cluster.local";
    // path -> service name, opaque, address of the endpoint, whether it has an identity
    for (path, service, opaque, addr, tls) in [
        ("10.96.0.1:80", name, false, None, false),
        ("10.96.0.1:81", name, true, None, false),
        ("10.96.0.1:82", name, false, None, false),
        ("10.96.0.1:84", name, true, None, false),
        ("10.96.0.1:3306", name, false, None, false),
        ("web.shop.svc.cluster.local:80", name, false, None, false),
        ("10.96.0.1:9999", "", false, None, false),
        ("10.1.0.1:8080", "", false, Some("10.1.0.1:8080"), true),
        ("10.1.0.1:81", "", true, Some("10.1.0.1:81"), true),
        ("10.1.0.1:84", "", false, Some("10.1.0.1:84"), false),
        ("10.1.0.9:80", "", false, Some("10.1.0.9:80"), false),
        ("10.1.0.9:5432", "", true, Some("10.1.0.9:5432"), false),
        ("192.168.7.1:30080", "", false, Some("10.1.0.1:8080"), true),
        ("203.0.113.9:443", "", false, Some("203.0.113.9:443"), false),
        (
            "web-1.web.shop.svc.cluster.local:80",
            "",
            false,
            Some("10.1.0.1:8080"),
            true,
        ),
    ] {
        let view = ProfileTarget::parse(path, DOMAIN).unwrap();
        let found = view.translate(&index).unwrap();
        assert_eq!(found.fully_qualified_name, service, "{path}");
        assert_eq!(found.opaque_protocol, opaque, "{path}");
        assert_eq!(found.parent_ref.is_some(), !service.is_empty(), "{path}");
        let endpoint = found.endpoint.unwrap_or_default();
        let expected: Option<SocketAddr> = addr.map(|addr| addr.parse().unwrap());
        assert_eq!(endpoint.addr, expected.map(Into::into), "{path}");
        assert_eq!(endpoint.tls_identity.is_some(), tls, "{path}");
        let undefined = path.ends_with(":9999");
        assert_eq!(found.retry_budget.is_none(), undefined, "{path}");
    }
}

#[test]
fn an_address_of_two_services_is_refused() {
    let mut index = index(|_| {});
    let other = "apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: shop}\n\
                 spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
    for (key, object) in objects(other) {
        index.apply(&key, &object);
    }
    let view = ProfileTarget::parse("10.96.0.1:80", DOMAIN).unwrap();
    let refused = view.translate(&index).unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(
        refused.message.ends_with("services shop/other, shop/web"),
        "{refused:?}"
    );
}

fn outbound(index: &Index, addr: &str) -> Result<OutboundPolicy, Refused> {
    let target = match addr.parse::<SocketAddr>() {
        Ok(addr) => traffic_spec::Target::Addr(addr.into()),
        Err(_) => traffic_spec::Target::Authority(addr.to_owned()),
    };
    let spec = TrafficSpec {
        source_workload: String::new(),
        target: Some(target),
    };
    OutboundTarget::parse(spec, DOMAIN)?.translate(index)
}

fn name_of(metadata: Option<&meta::Metadata>) -> String {
    match metadata.and_then(|metadata| metadata.kind.as_ref()) {
        Some(metadata::Kind::Default(name)) => name.clone(),
        Some(metadata::Kind::Resource(resource)) => {
            let meta::Resource {
                group,
                kind,
                name,
                namespace,
                port,
                ..
            } = resource;
            format!("{group}/{kind} {namespace}/{name}:{port}")
        }
        None => String::new(),
    }
}

#[test]
fn outbound_policies_are_linkerds_defaults() {
    let index = index(|_| {});
    for (addr, parent, kind, route) in [
        ("10.96.0.1:80", "core/Service shop/web:80", "detect", "http"),
        (
            "web.shop.svc:80",
            "core/Service shop/web:80",
            "detect",
            "http",
        ),
        (
            "web.shop.svc.cluster.local",
            "core/Service shop/web:80",
            "detect",
            "http",
        ),
        ("10.96.0.1:81", "core/Service shop/web:81", "opaque", "opaq"),
        ("10.96.0.1:82", "core/Service shop/web:82", "http1", "http"),
        ("10.96.0.1:83", "core/Service shop/web:83", "http2", "http"),
        ("10.96.0.1:84", "core/Service shop/web:84", "opaque", "opaq"),
        (
            "10.96.0.1:9",
            "core/Service shop/web:9",
            "opaque",
            "undefined-port",
        ),
        (
            "203.0.113.9:443",
            "egress-fallback",
            "detect",
            "egress-fallback",
        ),
    ] {
        let policy = outbound(&index, addr).unwrap();
        assert_eq!(name_of(policy.metadata.as_ref()), parent, "{addr}");
        let (found, metadata) = match policy.protocol.unwrap().kind.unwrap() {
            Outbound::Detect(detect) => {
                assert_eq!(detect.timeout.unwrap().seconds, 10);
                assert_eq!(detect.opaque.unwrap().routes.len(), 1);
                let http1 = detect.http1.unwrap().routes;
                assert_eq!(http1, detect.http2.unwrap().routes);
                ("detect", http1[0].metadata.clone())
            }
            Outbound::Opaque(opaque) => ("opaque", opaque.routes[0].metadata.clone()),
            Outbound::Http1(http) => ("http1", http.routes[0].metadata.clone()),
            Outbound::Http2(http) => ("http2", http.routes[0].metadata.clone()),
            Outbound::Grpc(_) | Outbound::Tls(_) => panic!("{addr}"),
        };
        assert_eq!(
            (found, name_of(metadata.as_ref()).as_str()),
            (kind, route),
            "{addr}"
        );
    }
    assert_eq!(
        outbound(&index, "10.1.0.1:8080").unwrap_err().code,
        Code::NotFound
    );
    assert_eq!(
        outbound(&index, "foo").unwrap_err().code,
        Code::InvalidArgument
    );
}

fn inbound(index: &Index, port: u16) -> Server {
    let pod = NsName::new("shop", "web-1");
    InboundPort { pod, port }.translate(index).unwrap()
}

/// Names of the server and who may connect: `policy: networks, authentication`.
fn access(server: &Server) -> String {
    let name = &server.labels["name"];
    let Some(authz) = server.authorizations.first() else {
        return format!("{name}: nobody");
    };
    assert_eq!(&name_of(authz.metadata.as_ref()), name);
    let permit = authz.authentication.clone().unwrap().permit.unwrap();
    let who = match permit {
        Permit::Unauthenticated(_) => "anyone",
        Permit::MeshTls(tls) => match tls.clients.unwrap() {
            Clients::Identities(any) => {
                assert_eq!(any.suffixes.len(), 1);
                "identified"
            }
            Clients::Unauthenticated(_) => "tls",
        },
    };
    format!("{name}: {} networks, {who}", authz.networks.len())
}

#[test]
fn inbound_defaults_follow_the_policy_and_the_ports_that_require_identity() {
    for (policy, plain, required) in [
        (
            "all-unauthenticated",
            "2 networks, anyone",
            "all-authenticated: 2 networks, identified",
        ),
        (
            "all-authenticated",
            "2 networks, identified",
            "all-authenticated: 2 networks, identified",
        ),
        (
            "cluster-unauthenticated",
            "5 networks, anyone",
            "cluster-authenticated: 5 networks, identified",
        ),
        (
            "cluster-authenticated",
            "5 networks, identified",
            "cluster-authenticated: 5 networks, identified",
        ),
        ("deny", "nobody", "deny: nobody"),
        (
            "audit",
            "2 networks, anyone",
            "all-authenticated: 2 networks, identified",
        ),
    ] {
        let index = index(|cluster| cluster.default_inbound_policy = policy.parse().unwrap());
        assert_eq!(access(&inbound(&index, 8080)), format!("{policy}: {plain}"));
        assert_eq!(access(&inbound(&index, 8443)), required);
    }
}

#[test]
fn inbound_ports_detect_or_are_opaque_and_probes_have_a_route() {
    let index = index(|_| {});
    let server = inbound(&index, 8080);
    let Some(Inbound::Detect(detect)) = server.protocol.unwrap().kind else {
        panic!("8080 is not opaque");
    };
    assert_eq!(detect.timeout.unwrap().seconds, 10);
    let names: Vec<_> = detect
        .http_routes
        .iter()
        .map(|r| name_of(r.metadata.as_ref()))
        .collect();
    assert_eq!(names, ["probe", "default"]);
    let matches = &detect.http_routes[0].rules[0].matches;
    let paths: Vec<_> = matches.iter().map(|m| format!("{:?}", m.path)).collect();
    assert_eq!(paths.len(), 2);
    assert!(
        paths[0].contains("\"/live\"") && paths[1].contains("\"/ready\""),
        "{paths:?}"
    );
    assert_eq!(detect.http_routes[0].authorizations.len(), 1);
    let kind = inbound(&index, 81).protocol.unwrap().kind;
    assert!(matches!(kind, Some(Inbound::Opaque(_))));
    let Some(Inbound::Detect(other)) = inbound(&index, 9).protocol.unwrap().kind else {
        panic!("any port of a pod has a server");
    };
    assert_eq!(other.http_routes.len(), 1);
    let nobody = InboundPort {
        pod: NsName::new("shop", "nobody"),
        port: 80,
    };
    assert_eq!(nobody.translate(&index).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_node_is_told_of_its_pods() {
    let index = index(|_| {});
    let pods = NodePods("n1".into()).translate(&index).unwrap();
    let pods: Vec<_> = pods
        .into_values()
        .map(weft_api::model::Pod::try_from)
        .collect();
    let [Ok(pod)] = &pods[..] else {
        panic!("{pods:?}");
    };
    assert_eq!(pod.display_name(), "shop/web-1");
    assert_eq!(pod.mesh, weft_api::model::Mesh::Meshed);
    assert_eq!(pod.settings.container_ports, [81, 8080]);
    assert!(NodePods("n9".into()).translate(&index).unwrap().is_empty());
}
