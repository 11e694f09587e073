//! Calls that no well-behaved program makes: to the proxy's own ports, from inside and outside.

use std::net::SocketAddr;

use weft_tests::{Pod, PodSpec, apps, fixture::Pair, test_name};

/// Who calls, and whom.
#[derive(Clone, Copy, Debug)]
enum To {
    /// A meshed pod calls itself over loopback.
    Loopback,
    /// The same over IPv6.
    Loopback6,
    /// A meshed pod calls itself by its address.
    Own,
    /// A meshed pod calls a meshed pod on the other node.
    Peer,
    /// A pod that is not meshed calls one that is.
    FromOutside,
}

/// What a call to one of the proxy's ports may end in.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// No connection, or one that ends without an answer of an application.
    NoAnswer,
    /// An answer with this status.
    Status(u16),
}

use Expected::{NoAnswer, Status};

const CALLS: &[(To, u16, &str, Expected)] = &[
    (To::Loopback, 4140, "/", NoAnswer),
    (To::Loopback6, 4140, "/", NoAnswer),
    (To::Own, 4140, "/", NoAnswer),
    (To::Loopback, 4143, "/", NoAnswer),
    (To::Own, 4143, "/", NoAnswer),
    (To::Own, 4191, "/ready", Status(200)),
    (To::Peer, 4140, "/", NoAnswer),
    (To::Peer, 4143, "/", NoAnswer),
    (To::Peer, 4191, "/ready", Status(200)),
    (To::FromOutside, 4140, "/", NoAnswer),
    (To::FromOutside, 4143, "/", NoAnswer),
    (To::FromOutside, 4191, "/ready", Status(200)),
    (To::FromOutside, 4191, "/shutdown", NoAnswer),
];

fn call(from: &Pod, to: SocketAddr, path: &str) -> Option<u16> {
    let url = format!("http://{to}{path}");
    let args = ["--globoff", "--max-time", "5"];
    apps::curl(from, &url, &args).ok().map(|(status, _)| status)
}

#[test]
fn the_proxys_ports_give_nothing_away_and_survive() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let outsider = pair.world.pod(PodSpec::new("outsider", "n1")).unwrap();
    let (client, server) = (&pair.client, &pair.server);
    let pids = || {
        let nodes = pair.world.nodes().iter();
        nodes
            .map(|node| (node.agent_pid(), node.daemon_pid()))
            .collect::<Vec<_>>()
    };
    let before = pids();
    for (to, port, path, expected) in CALLS {
        let (from, address) = match to {
            To::Loopback => (client, SocketAddr::from(([127, 0, 0, 1], *port))),
            To::Loopback6 => (
                client,
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, *port)),
            ),
            To::Own => (client, client.at(*port)),
            To::Peer => (client, server.at(*port)),
            To::FromOutside => (&outsider, server.at(*port)),
        };
        let status = call(from, address, path);
        let fits = match expected {
            NoAnswer => status.is_none_or(|status| status >= 400),
            Status(expected) => status == Some(*expected),
        };
        assert!(
            fits,
            "{to:?} {address}{path}: {status:?}, expected {expected:?}"
        );
    }
    assert_eq!(pids(), before, "a daemon was restarted");
    pair.works().unwrap();
}

#[test]
fn a_loop_through_the_proxy_ends() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let node = pair.world.node("n1").unwrap();
    let count = || {
        let scrape = node.agent_metrics().unwrap();
        scrape.sum("tcp_open_total", &[("pod", "client")])
    };
    let before = count();
    for _ in 0..5 {
        let own = SocketAddr::from(([127, 0, 0, 1], 4140));
        assert!(call(&pair.client, own, "/").is_none_or(|status| status >= 400));
    }
    let opened = count() - before;
    assert!(opened < 100.0, "5 calls made {opened} connections");
}
