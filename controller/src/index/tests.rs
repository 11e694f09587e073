//! Truth tables of the index: who is meshed, with what settings, behind which service.

use weft_api::model::{Guard, Mesh};

use super::*;
use crate::source::objects;

fn index(yaml: &str) -> Index {
    let mut index = Index::new(Cluster::default());
    for (key, object) in objects(yaml) {
        index.apply(&key, &object);
    }
    index
}

fn namespace(annotations: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotations}}}, \
         labels: {{{labels}}}}}\n---\n"
    )
}

fn pod(name: &str, metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, {metadata}}}\n\
         spec: {{nodeName: n1, containers: [{{name: app}}], {spec}}}\nstatus: {{{status}}}\n---\n"
    )
}

fn web(index: &Index) -> &Pod {
    index.find_pod(&NsName::new("shop", "web")).unwrap()
}

#[test]
fn pods_are_meshed_by_the_truth_table() {
    let none = "";
    for (space, own, expected) in [
        (none, none, "not"),
        (none, "enabled", "meshed"),
        (none, "disabled", "not"),
        ("enabled", none, "meshed"),
        ("enabled", "enabled", "meshed"),
        ("enabled", "disabled", "not"),
        ("ingress", none, "meshed"),
        ("disabled", none, "not"),
        ("disabled", "enabled", "meshed"),
        ("disabled", "ingress", "meshed"),
        ("enabled", "true", "not"),
        ("yes", "enabled", "not"),
        ("yes", none, "not"),
    ] {
        let annotation = |value: &str| match value {
            "" => String::new(),
            value => format!("linkerd.io/inject: '{value}'"),
        };
        let own = format!("annotations: {{{}}}", annotation(own));
        let index = index(&format!(
            "{}{}",
            namespace(&annotation(space), ""),
            pod("web", &own, "", "")
        ));
        let found = match &web(&index).settled.mesh {
            Mesh::Meshed => "meshed",
            Mesh::NotMeshed(_) => "not",
            Mesh::Skipped(_) => "skipped",
        };
        assert_eq!(found, expected, "namespace {space:?}, pod {own:?}");
        let wrong = space == "yes" || own.contains("true");
        assert_eq!(
            !index.problems().is_empty(),
            wrong,
            "{:?}",
            index.problems()
        );
    }
}

#[test]
fn what_cannot_be_meshed_is_skipped_with_a_reason() {
    let enabled = "linkerd.io/inject: enabled";
    let two = |other: &str| format!("containers: [{{name: app}}, {{name: {other}}}]");
    for (labels, metadata, spec, reason) in [
        ("", "", "hostNetwork: true".to_owned(), "hostNetwork"),
        (
            "",
            "",
            two("istio-proxy"),
            "sidecar proxy already: istio-proxy",
        ),
        (
            "",
            "",
            two("linkerd-proxy"),
            "sidecar proxy already: linkerd-proxy",
        ),
        (
            "config.linkerd.io/admission-webhooks: disabled",
            "",
            String::new(),
            "admission-webhooks",
        ),
        (
            "",
            "labels: {linkerd.io/control-plane-component: identity}",
            String::new(),
            "control-plane-component",
        ),
        (
            "",
            "",
            "serviceAccountName: a.b".to_owned(),
            "dot in its name",
        ),
    ] {
        let pod = pod("web", metadata, &spec, "").replacen(
            "containers: [{name: app}], containers",
            "containers",
            1,
        );
        let index = index(&format!("{}{pod}", namespace(enabled, labels)));
        let Mesh::Skipped(found) = &web(&index).settled.mesh else {
            panic!("{reason}: {:?}", web(&index).settled.mesh);
        };
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn settings_come_from_the_pod_then_its_namespace_then_the_defaults() {
    let space = "config.linkerd.io/opaque-ports: '1000', \
                 config.linkerd.io/default-inbound-policy: deny, weft.dev/guard: audit";
    let own = "annotations: {config.linkerd.io/opaque-ports: 'db,9000-9002', \
               config.linkerd.io/proxy-outbound-connect-timeout: 1500ms, \
               config.linkerd.io/skip-subnets: '10.9.0.0/16, 10.8.0.1', \
               config.linkerd.io/skip-inbound-ports: '22'}";
    let ports = "initContainers: [{name: i, ports: [{name: db, containerPort: 5000}]}]";
    let index = index(&format!(
        "{}{}",
        namespace(space, ""),
        pod("web", own, ports, "")
    ));
    let pod = web(&index);
    let settings = &pod.settled.settings;
    assert_eq!(settings.opaque.to_string(), "5000,9000-9002");
    assert_eq!(settings.skip_inbound.to_string(), "22");
    assert_eq!(settings.skip_outbound.to_string(), "4567-4568");
    assert_eq!(settings.skip_subnets.len(), 2);
    assert_eq!(settings.outbound_connect_timeout.as_millis(), 1500);
    assert_eq!(settings.guard, Guard::Audit);
    assert_eq!(&*settings.default_inbound_policy, "deny");
    assert_eq!(pod.settled.inbound.policy, DefaultPolicy::Deny);
    assert_eq!(settings.container_ports, [5000]);
    assert_eq!(index.problems(), []);
}

#[test]
fn bad_annotations_are_reported_and_the_default_is_used() {
    let default = Settings::default();
    for (annotation, value) in [
        ("opaque-ports", "80-70"),
        ("skip-inbound-ports", "70000"),
        ("skip-outbound-ports", "https,x"),
        ("skip-subnets", "10.0.0.0/33"),
        ("proxy-outbound-connect-timeout", "fast"),
        ("inbound-port", "0"),
        ("proxy-require-identity-inbound-ports", "nosuchport"),
    ] {
        let own = format!("annotations: {{config.linkerd.io/{annotation}: '{value}'}}");
        let index = index(&pod("web", &own, "", ""));
        let problems = index.problems();
        assert_eq!(problems.len(), 1, "{annotation}: {problems:?}");
        assert!(problems[0].message.contains(annotation), "{problems:?}");
        assert_eq!(web(&index).settled.settings, default, "{annotation}");
    }
    let index = index(&pod("web", "annotations: {weft.dev/guard: maybe}", "", ""));
    assert_eq!(web(&index).settled.settings.guard, Guard::Enforce);
    assert_eq!(index.problems().len(), 1);
}

#[test]
fn a_misspelt_inbound_policy_is_reported_and_lets_nobody_in() {
    let own = "annotations: {config.linkerd.io/default-inbound-policy: deyn}";
    let index = index(&pod("web", own, "", ""));
    let problems = index.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.contains("deyn"), "{problems:?}");
    let settings = &web(&index).settled.settings;
    assert_eq!(&*settings.default_inbound_policy, "deny");
}

#[test]
fn a_namespace_annotated_later_counts_for_pods_that_are_there() {
    let mut index = index(&pod("web", "", "", ""));
    assert!(!web(&index).is_meshed());
    let (key, object) = objects(&namespace("linkerd.io/inject: enabled", "")).remove(0);
    index.apply(&key, &object);
    assert!(web(&index).is_meshed());
    index.delete(&key);
    assert!(!web(&index).is_meshed());
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.96.0.1, selector: {app: web}, \
    ports: [{name: http, port: 80, targetPort: web}, {name: raw, port: 81}]}\n---\n";

fn endpoints(index: &Index, port: u16) -> Vec<String> {
    let service = index.find_service(&NsName::new("shop", "web")).unwrap();
    let found = index.endpoints(service, port);
    found.iter().map(|one| one.addr.to_string()).collect()
}

fn replica(name: &str, spec: &str, status: &str) -> String {
    let ports = "initContainers: [{name: i, ports: [{name: web, containerPort: 8080}]}]";
    pod(
        name,
        "labels: {app: web}",
        &format!("{ports}, {spec}"),
        status,
    )
}

#[test]
fn endpoints_are_the_ready_pods_that_a_service_selects() {
    let ip = |last: u8| format!("podIPs: [{{ip: 10.1.0.{last}}}]");
    let not_ready = "conditions: [{type: Ready, status: 'False'}]";
    let pods = [
        replica("a", "", &ip(1)),
        replica("b", "", &format!("{}, phase: Running", ip(2))),
        replica("c", "", &format!("{}, phase: Pending", ip(3))),
        replica("d", "", &format!("{}, phase: Succeeded", ip(4))),
        replica("e", "", &format!("{}, {not_ready}", ip(5))),
        replica("f", "", "podIPs: [{ip: 'fd00::6'}, {ip: 10.1.0.6}]"),
        replica("g", "", "podIPs: [{ip: 'fd00::7'}]"),
        replica("h", "", ""),
        pod("other", "", "", &ip(9)),
    ];
    let mut index = index(&format!("{}{SERVICE}", pods.concat()));
    let web = [
        "10.1.0.1:8080",
        "10.1.0.2:8080",
        "10.1.0.6:8080",
        "[fd00::7]:8080",
    ];
    assert_eq!(endpoints(&index, 80), web);
    assert_eq!(endpoints(&index, 81)[0], "10.1.0.1:81");
    assert_eq!(
        endpoints(&index, 9999)[0],
        "10.1.0.1:9999",
        "undefined: the same number"
    );
    index.delete(&ObjectKey::new(Kind::Pod, NsName::new("shop", "a")));
    assert_eq!(endpoints(&index, 80).len(), 3);
    for (key, object) in objects(&replica("z", "", &ip(1))) {
        index.apply(&key, &object);
    }
    assert_eq!(endpoints(&index, 80).len(), 4);
    let ip = "10.1.0.1".parse().unwrap();
    assert_eq!(&*index.find_pod_by_ip(ip).unwrap().name.name, "z");
    assert_eq!(index.problems(), []);
}

#[test]
fn slices_that_are_given_stand_in_place_of_the_selector() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
        metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
        addressType: IPv4\nports: [{name: http, port: 9090}]\nendpoints: \
        [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2], conditions: {ready: false}}, \
        {addresses: [192.0.2.1]}]\n---\n";
    let pod = replica("a", "", "podIPs: [{ip: 10.1.0.1}]");
    let index = index(&format!("{pod}{SERVICE}{slice}"));
    assert_eq!(endpoints(&index, 80), ["10.1.0.1:9090", "192.0.2.1:9090"]);
    assert_eq!(endpoints(&index, 81), [""; 0]);
    let service = index.find_service(&NsName::new("shop", "web")).unwrap();
    let found = index.endpoints(service, 80);
    assert!(
        found[0].pod.is_some(),
        "a pod's address is the pod's, reference or not"
    );
    assert!(found[1].pod.is_none());
}

#[test]
fn shared_addresses_are_reported() {
    let status = "podIPs: [{ip: 10.1.0.1}]";
    let other = SERVICE.replace("name: web,", "name: other,");
    let pods = [replica("a", "", status), replica("b", "", status)].concat();
    let index = index(&format!("{pods}{SERVICE}{other}"));
    let problems: Vec<_> = index
        .problems()
        .iter()
        .map(|one| one.message.clone())
        .collect();
    assert_eq!(
        problems,
        [
            "address 10.96.0.1 is claimed by shop/other too",
            "address 10.1.0.1 is claimed by shop/a too"
        ]
    );
}

#[test]
fn uids_are_made_when_absent_and_the_owner_is_the_deployment() {
    let owner = "labels: {pod-template-hash: 5d4f}, ownerReferences: \
        [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, uid: x, controller: true}]";
    let first = index(&pod("web", owner, "", ""));
    let again = index(&pod("web", "", "", ""));
    assert_eq!(web(&first).uid, web(&again).uid);
    assert_eq!(web(&first).uid.as_str().len(), 36);
    assert_eq!(web(&first).owner, ("deployment".into(), "web".into()));
    let given = index(&pod("web", "uid: abc-1", "", ""));
    assert_eq!(web(&given).uid.as_str(), "abc-1");
    let both = [pod("a", "uid: same", "", ""), pod("b", "uid: same", "", "")].concat();
    let problems = index(&both).problems();
    assert_eq!(problems[0].message, "has the uid same of pod shop/a too");
    let hostile = index(&pod("web", "uid: '../x'", "", ""));
    assert_eq!(web(&hostile).uid, web(&first).uid);
    assert_eq!(hostile.problems().len(), 1);
}

#[test]
fn durations_parse_as_users_write_them() {
    for (text, millis) in [
        ("100ms", Some(100)),
        ("1.5s", Some(1500)),
        ("1m30s", Some(90_000)),
        ("24h", Some(86_400_000)),
        ("0", Some(0)),
        ("", None),
        ("5", None),
        ("s", None),
        ("-1s", None),
        ("1x", None),
        ("1e400h", None),
    ] {
        let found = parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(found, millis, "{text:?}");
    }
}
