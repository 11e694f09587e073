//! The kernel side, for real: programs are loaded, attached and met by connections.
//!
//! Needs root and a kernel with the features that `weft-node preflight` asks for. Everything is
//! made anew and removed: namespaces without names, a cgroup and pins named `wk-…`.

mod world;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd,
};

use socket2::Protocol;
use weft_node::kernel::{Expected, Fault, Guard, Kernel, ListenerSlot, Reason};
use world::{BRIEFLY, CLIENT, Netns, PATIENCE, SERVER, SERVICE4, SERVICE6, World, accept};

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sends a byte one way and finds it at the other end.
fn says_hello(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"x").unwrap();
    assert_eq!(to.read(&mut [0; 1]).unwrap(), 1);
}

fn is_held(result: io::Result<TcpStream>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

#[test]
fn a_connection_goes_through_both_proxies_and_everyone_sees_true_addresses() {
    let world = World::new("chain");
    for (name, to, protocol, own, app) in [
        (
            "IPv4",
            SERVICE4,
            Protocol::TCP,
            CLIENT.v4,
            "10.211.0.3:8080",
        ),
        (
            "IPv6",
            SERVICE6,
            Protocol::TCP,
            CLIENT.v6,
            "[fd00:211::3]:8080",
        ),
        (
            "mapped",
            "[::ffff:10.96.0.10]:80",
            Protocol::TCP,
            CLIENT.v4,
            "10.211.0.3:8080",
        ),
        (
            "MPTCP",
            SERVICE4,
            Protocol::MPTCP,
            CLIENT.v4,
            "10.211.0.3:8080",
        ),
        (
            "MPTCP6",
            SERVICE6,
            Protocol::MPTCP,
            CLIENT.v6,
            "[fd00:211::3]:8080",
        ),
    ] {
        let service = canonical(to.parse().unwrap());
        let app: SocketAddr = app.parse().unwrap();
        let application = world.server.serve(&app.to_string());
        let (outbound, inbound) = match service {
            SocketAddr::V4(_) => (ListenerSlot::Outbound4, ListenerSlot::Inbound4),
            SocketAddr::V6(_) => (ListenerSlot::Outbound6, ListenerSlot::Inbound6),
        };
        let client = world
            .client
            .connect_by(to, protocol, PATIENCE)
            .unwrap_or_else(|error| {
                panic!("{name}: {error}");
            });
        assert_eq!(canonical(client.peer_addr().unwrap()), service, "{name}");
        assert_eq!(
            canonical(client.local_addr().unwrap()).ip(),
            ip(own),
            "{name}"
        );

        let accepted = world.client.accept(outbound);
        assert_eq!(accepted.local_addr().unwrap(), service, "{name}");
        assert_eq!(
            accepted.peer_addr().unwrap(),
            canonical(client.local_addr().unwrap())
        );
        says_hello(&client, &accepted);

        let dialled = world.dial(&world.client, app).unwrap();
        let arrived = world.server.accept(inbound);
        assert_eq!(arrived.local_addr().unwrap(), app, "{name}");
        assert_eq!(arrived.peer_addr().unwrap(), dialled.local_addr().unwrap());
        says_hello(&dialled, &arrived);

        let to_app = world.dial(&world.server, app).unwrap();
        let served = accept(&application);
        assert_eq!(served.peer_addr().unwrap(), to_app.local_addr().unwrap());
        says_hello(&to_app, &served);
    }
    for (reason, expected) in [
        (Reason::Captured, 5),
        (Reason::SteeredOut, 5),
        (Reason::SteeredIn, 5),
        (Reason::PassLent, 10),
        (Reason::GuardPassLent, 5),
        (Reason::GuardDropSyn, 0),
        (Reason::GuardDropMarked, 0),
    ] {
        assert_eq!(world.count(reason), expected, "{}", reason.name());
    }
}

#[test]
fn without_its_rule_a_pod_sends_nothing_and_the_guard_reports() {
    let world = World::new("guard");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut events = runtime.block_on(async { world.kernel.events() }).unwrap();
    let application = world.server.serve("10.211.0.3:8080");
    world.client.netns.ip("-4 rule del pref 100");
    world.client.netns.ip("-6 rule del pref 100");

    let result = world
        .client
        .connect_by("10.211.0.3:8080", Protocol::TCP, BRIEFLY);
    assert!(is_held(result));
    assert!(world.count(Reason::GuardDropMarked) > 0);
    assert!(!world::is_readable(&application, BRIEFLY));
    let event = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, events.next())
            .await
            .expect("an event")
            .unwrap()
    });
    assert_eq!(
        (
            event.cookie,
            event.slot,
            event.reason,
            event.dropped,
            event.nested
        ),
        (
            world.client.cookie,
            CLIENT.slot,
            Reason::GuardDropMarked,
            true,
            false
        )
    );
    assert_eq!(event.destination, "10.211.0.3:8080".parse().unwrap());
    assert_eq!(event.source.ip(), ip(CLIENT.v4));

    world.client.steer();
    let client = world.client.connect(SERVICE4).unwrap();
    says_hello(&client, &world.client.accept(ListenerSlot::Outbound4));
}

#[test]
fn what_is_connected_before_capture_is_on_is_dropped_audited_or_let_go() {
    let world = World::new("modes");
    world
        .kernel
        .set_enrolled(world.client.cookie, false)
        .unwrap();
    world
        .kernel
        .set_enrolled(world.server.cookie, false)
        .unwrap();
    let _application = world.server.serve("10.211.0.3:8080");
    for (guard, reason, passes) in [
        (Guard::Enforce, Reason::GuardDropSyn, false),
        (Guard::Audit, Reason::GuardAudit, true),
        (Guard::Off, Reason::GuardDropSyn, true),
    ] {
        world.kernel.set_guard(world.client.cookie, guard).unwrap();
        let before = world.count(reason);
        let result = world
            .client
            .connect_by("10.211.0.3:8080", Protocol::TCP, BRIEFLY);
        assert_eq!(result.is_ok(), passes, "{guard:?}");
        assert_eq!(
            world.count(reason) > before,
            guard != Guard::Off,
            "{guard:?}"
        );
    }
}
