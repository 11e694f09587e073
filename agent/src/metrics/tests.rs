//! Golden texts, written by hand from the reference of Linkerd's families.

use std::{sync::Arc, time::Duration};

use super::*;

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

struct State;

impl PodState for State {
    fn connections_open(&self) -> usize {
        2
    }

    fn certificate(&self) -> Certificate {
        Certificate {
            expires: Some(std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
            refreshes: 1,
            ..Certificate::default()
        }
    }
}

fn server() -> ServerLabels {
    ServerLabels {
        group: "".into(),
        kind: "default".into(),
        name: "all-unauthenticated".into(),
        port: 8080,
    }
}

fn inbound() -> InboundLabels {
    let named = |name: &str| (Arc::from(""), Arc::from("default"), Arc::from(name));
    let (group, kind, name) = named("default");
    let (authz_group, authz_kind, authz_name) = named("all-unauthenticated");
    InboundLabels {
        target: "10.1.0.2:8080".parse().unwrap(),
        tls: ServerTls::Established(Some(WEB.parse().unwrap())),
        server: server(),
        route: RouteLabels { group, kind, name },
        authz: AuthzLabels {
            group: authz_group,
            kind: authz_kind,
            name: authz_name,
        },
    }
}

fn outbound() -> OutboundLabels {
    let dst = [
        ("dst_namespace", "shop"),
        ("dst_service", "web"),
        ("dst_pod", "web-1"),
    ];
    OutboundLabels {
        authority: Some("web.shop.svc.cluster.local:80".into()),
        target: "10.1.0.2:8080".parse().unwrap(),
        tls: ClientTls::Established(WEB.parse().unwrap()),
        dst: dst
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
    }
}

fn node_with(pods: &[(&str, &Arc<PodMetrics>)]) -> NodeMetrics {
    let node = NodeMetrics::default();
    for (uid, metrics) in pods {
        node.add_pod((*uid).into(), Arc::clone(metrics), Arc::new(State));
    }
    node
}

/// The part of a page before the families of prometheus-client.
fn linkerds(page: &str) -> &str {
    let end = page.find("# HELP proxy_build_info").unwrap();
    assert!(page.ends_with("# EOF\n"));
    &page[..end]
}

const OUTBOUND: &str = r#"direction="outbound",authority="web.shop.svc.cluster.local:80",target_addr="10.1.0.2:8080",target_ip="10.1.0.2",target_port="8080",tls="true",server_id="web.shop.serviceaccount.identity.linkerd.cluster.local",dst_namespace="shop",dst_service="web",dst_pod="web-1""#;

const INBOUND: &str = r#"direction="inbound",target_addr="10.1.0.2:8080",target_ip="10.1.0.2",target_port="8080",tls="true",client_id="web.shop.serviceaccount.identity.linkerd.cluster.local",srv_group="",srv_kind="default",srv_name="all-unauthenticated",srv_port="8080",route_group="",route_kind="default",route_name="default",authz_group="",authz_kind="default",authz_name="all-unauthenticated""#;

const CERTIFICATE: &str = r#"# HELP control_identity_cert_expiration_timestamp_seconds Time when the this proxy's current mTLS identity certificate will expire (in seconds since the UNIX epoch).
# TYPE control_identity_cert_expiration_timestamp_seconds gauge
# UNIT control_identity_cert_expiration_timestamp_seconds seconds
control_identity_cert_expiration_timestamp_seconds 1800000000
# HELP control_identity_cert_refreshes The total number of times this proxy's mTLS identity certificate has been refreshed.
# TYPE control_identity_cert_refreshes counter
control_identity_cert_refreshes_total{result="ok"} 1
"#;

fn histogram(labels: &str, counts: [(&str, u64); 26], sum: u64) -> String {
    let mut text = String::new();
    for (le, count) in counts {
        text += &format!("response_latency_ms_bucket{{{labels},le=\"{le}\"}} {count}\n");
    }
    let total = counts[25].1;
    text += &format!("response_latency_ms_count{{{labels}}} {total}\n");
    text += &format!("response_latency_ms_sum{{{labels}}} {sum}\n");
    text
}

#[tokio::test]
async fn a_pods_page_of_http_reads_as_linkerds() {
    let pod = Arc::new(PodMetrics::default());
    let http = pod.outbound_http(&outbound());
    http.request();
    http.request();
    http.response(&Outcome {
        status: Some(200),
        class: Classification::Success,
        grpc_status: None,
        error: None,
        latency: Duration::from_micros(4_700),
    });
    http.response(&Outcome {
        status: None,
        class: Classification::Failure,
        grpc_status: None,
        error: Some("timeout"),
        latency: Duration::from_secs(60),
    });
    pod.inbound_http(&inbound()).request();
    let buckets = |first: u64, last: u64| {
        let les = "1 2 3 4 5 10 20 30 40 50 100 200 300 400 500 1000 2000 3000 4000 5000 10000 20000 30000 40000 50000 +Inf";
        let mut les = les.split(' ').enumerate();
        [(); 26].map(|()| {
            let (n, le) = les.next().unwrap();
            // 4.7 ms count as 4: fractions are cut off.
            (
                le,
                if n == 25 {
                    last
                } else if n >= 3 {
                    first
                } else {
                    0
                },
            )
        })
    };
    let latencies = histogram(&format!("{OUTBOUND},status_code=\"200\""), buckets(1, 1), 4)
        + &histogram(OUTBOUND, buckets(0, 1), 60_000);
    let expected = format!(
        "# HELP request_total Total count of HTTP requests.\n\
         # TYPE request_total counter\n\
         request_total{{{INBOUND}}} 1\n\
         request_total{{{OUTBOUND}}} 2\n\
         # HELP response_latency_ms Elapsed times between a request's headers being received and its response stream completing\n\
         # TYPE response_latency_ms histogram\n\
         {latencies}\
         # HELP response_total Total count of HTTP responses.\n\
         # TYPE response_total counter\n\
         response_total{{{OUTBOUND},status_code=\"200\",classification=\"success\",grpc_status=\"\",error=\"\"}} 1\n\
         response_total{{{OUTBOUND},classification=\"failure\",grpc_status=\"\",error=\"timeout\"}} 1\n\
         {CERTIFICATE}"
    );
    let page = node_with(&[("a", &pod)]).render_pod(&"a".into()).unwrap();
    assert_eq!(linkerds(&page), expected);
}

#[tokio::test]
async fn a_pods_page_of_tcp_reads_as_linkerds() {
    let pod = Arc::new(PodMetrics::default());
    let source = pod.tcp(&TcpLabels::OutboundSource {
        target: "10.96.0.1:80".parse().unwrap(),
    });
    source.open();
    source.open();
    source.read(10);
    source.write(20);
    source.close(Some("ECONNRESET"));
    pod.tcp(&TcpLabels::InboundDestination).open();
    pod.tcp(&TcpLabels::InboundSource {
        target: "[fd00::2]:8080".parse().unwrap(),
        tls: ServerTls::None(NoServerTls::NoTlsFromRemote),
        server: server(),
    });
    let inbound_src = r#"direction="inbound",peer="src",target_addr="[fd00::2]:8080",target_ip="fd00::2",target_port="8080",tls="no_identity",no_tls_reason="no_tls_from_remote",srv_group="",srv_kind="default",srv_name="all-unauthenticated",srv_port="8080""#;
    let inbound_dst =
        r#"direction="inbound",peer="dst",tls="no_identity",no_tls_reason="loopback""#;
    let outbound_src = r#"direction="outbound",peer="src",target_addr="10.96.0.1:80",target_ip="10.96.0.1",target_port="80",tls="no_identity",no_tls_reason="loopback""#;
    let mut expected = String::new();
    for (name, kind, help, values) in [
        (
            "tcp_open_total",
            "counter",
            "Total count of opened connections",
            [1, 0, 2],
        ),
        (
            "tcp_open_connections",
            "gauge",
            "Number of currently-open connections",
            [1, 0, 1],
        ),
        (
            "tcp_read_bytes_total",
            "counter",
            "Total count of bytes read from peers",
            [0, 0, 10],
        ),
        (
            "tcp_write_bytes_total",
            "counter",
            "Total count of bytes written to peers",
            [0, 0, 20],
        ),
    ] {
        expected += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let labels = [inbound_dst, inbound_src, outbound_src];
        for (labels, value) in labels.iter().zip(values) {
            expected += &format!("{name}{{{labels}}} {value}\n");
        }
    }
    expected += &format!(
        "# HELP tcp_close_total Total count of closed connections\n\
         # TYPE tcp_close_total counter\n\
         tcp_close_total{{{outbound_src},errno=\"ECONNRESET\"}} 1\n\
         {CERTIFICATE}"
    );
    let page = node_with(&[("a", &pod)]).render_pod(&"a".into()).unwrap();
    assert_eq!(linkerds(&page), expected);
}

#[tokio::test]
async fn counters_of_policy_and_errors_have_linkerds_label_order() {
    let pod = Arc::new(PodMetrics::default());
    let labels = inbound();
    let tls = ServerTls::Established(None);
    pod.http_authz_allow(&labels).increment();
    pod.http_authz_deny(labels.target, &labels.server, &labels.route, &tls)
        .increment();
    pod.tcp_authz_allow(labels.target, &labels.server, &labels.authz, &labels.tls)
        .increment();
    pod.inbound_http_error("failfast", labels.target, &labels.server);
    pod.inbound_tcp_error("i/o", labels.target);
    pod.outbound_http_error("i/o");
    pod.outbound_tcp_error("unexpected", labels.target);
    let page = node_with(&[("a", &pod)]).render_pod(&"a".into()).unwrap();
    let samples: Vec<_> = linkerds(&page)
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("control_"))
        .collect();
    let target = r#"target_addr="10.1.0.2:8080",target_ip="10.1.0.2",target_port="8080""#;
    let srv = r#"srv_group="",srv_kind="default",srv_name="all-unauthenticated",srv_port="8080""#;
    let route = r#"route_group="",route_kind="default",route_name="default""#;
    let authz = r#"authz_group="",authz_kind="default",authz_name="all-unauthenticated""#;
    let web = format!(r#"tls="true",client_id="{WEB}""#);
    let anyone = r#"tls="true",client_id="""#;
    assert_eq!(
        samples,
        [
            format!(r#"inbound_http_errors_total{{error="failfast",{target},{srv}}} 1"#),
            format!(r#"inbound_tcp_errors_total{{error="i/o",{target}}} 1"#),
            r#"outbound_http_errors_total{error="i/o"} 1"#.to_owned(),
            format!(r#"outbound_tcp_errors_total{{{target},error="unexpected"}} 1"#),
            format!("inbound_http_authz_allow_total{{{target},{srv},{route},{authz},{web}}} 1"),
            format!("inbound_http_authz_deny_total{{{target},{srv},{route},{anyone}}} 1"),
            format!("inbound_tcp_authz_allow_total{{{target},{srv},{authz},{web}}} 1"),
        ]
    );
}

#[tokio::test]
async fn the_nodes_page_groups_pods_under_one_head_and_says_whose_series_they_are() {
    let labels = |pod| [("namespace", "shop"), ("pod", pod), ("deployment", "web")];
    let [a, b] = ["web-1", "web-2"].map(|pod| Arc::new(PodMetrics::new(labels(pod))));
    for pod in [&a, &b] {
        pod.tcp(&TcpLabels::InboundDestination).open();
    }
    let node = node_with(&[("a", &a), ("b", &b)]);
    node.control(
        "10.0.0.1:8086",
        &ClientTls::Established(WEB.parse().unwrap()),
    )
    .request();
    let page = node.render_node();
    let open: Vec<_> = page
        .lines()
        .filter(|line| line.contains("tcp_open ") || line.starts_with("tcp_open_total"))
        .collect();
    assert_eq!(
        open,
        [
            "# HELP tcp_open Total count of opened connections",
            "# TYPE tcp_open counter",
            r#"tcp_open_total{namespace="shop",pod="web-1",deployment="web",direction="inbound",peer="dst",tls="no_identity",no_tls_reason="loopback"} 1"#,
            r#"tcp_open_total{namespace="shop",pod="web-2",deployment="web",direction="inbound",peer="dst",tls="no_identity",no_tls_reason="loopback"} 1"#,
        ]
    );
    let control = format!(
        "control_request_total{{addr=\"10.0.0.1:8086\",tls=\"true\",server_id=\"{WEB}\"}} 1\n"
    );
    assert!(page.contains(&control), "{page}");
    let connections = r#"weft_connections_open{namespace="shop",pod="web-2",deployment="web"} 2"#;
    assert!(page.contains(connections), "{page}");
    let mut types: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let all = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), all, "a type line twice");
    node.remove_pod(&"b".into());
    assert!(
        !node.render_node().contains("web-2"),
        "series go with their pod"
    );
}

#[tokio::test]
async fn above_the_cap_series_are_dropped_and_counted() {
    let pod = Arc::new(PodMetrics::default());
    for port in 1..=2050 {
        let target = ([10, 0, 0, 1], port).into();
        pod.tcp(&TcpLabels::OutboundSource { target }).open();
    }
    let page = node_with(&[("a", &pod)]).render_pod(&"a".into()).unwrap();
    assert!(
        page.contains("weft_metrics_series_dropped_total 2\n"),
        "{}",
        linkerds(&page)
    );
    assert!(page.contains("target_port=\"2048\""));
    assert!(!page.contains("target_port=\"2049\""));
}

#[tokio::test]
async fn label_values_are_escaped() {
    let pod = Arc::new(PodMetrics::default());
    let labels = OutboundLabels {
        dst: Arc::from([("dst_x".into(), "a\"b\\c\nd".into())]),
        ..outbound()
    };
    pod.outbound_http(&labels).request();
    let page = node_with(&[("a", &pod)]).render_pod(&"a".into()).unwrap();
    assert!(page.contains(r#"dst_x="a\"b\\c\nd"} 1"#), "{page}");
}
