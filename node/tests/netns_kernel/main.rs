//! The kernel side, for real: programs are loaded, attached and met by connections.
//!
//! Needs root and a kernel with the features that `weft-node preflight` asks for. Everything is
//! made anew and removed: namespaces without names, a cgroup and pins named `wk-…`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test: helpers may panic, and nobody else uses them"
)]

mod limits;
#[cfg(feature = "kernel-log")]
mod lines;
mod world;

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol};
use weft_node::kernel::{
    Expected, Fault, Guard, Kernel, ListenerSlot, PodKernel, Reason, Settings, Skips,
    probe::{Outcome, preflight},
};
use world::{
    BRIEFLY, CLIENT, Netns, PATIENCE, Pod, SERVER, SERVICE4, SERVICE6, World, accept, disconnect,
    is_readable, tcp,
};

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
    assert!(!is_readable(&application, BRIEFLY));
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

#[test]
fn preflight_finds_this_machine_able_and_leaves_nothing() {
    let world = World::new("preflight");
    let checks = preflight(&world.config);
    let missing: Vec<_> = checks
        .iter()
        .filter(|check| check.outcome == Outcome::Missing)
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
    for name in [
        "capture_connect4",
        "links on cgroups",
        "links in pods",
        "neighbours",
    ] {
        let check = checks.iter().find(|check| check.name == name).expect(name);
        assert_eq!(check.outcome, Outcome::Ok, "{check:?}");
    }
    let left = fs::read_dir(&world.config.cgroup)
        .unwrap()
        .filter_map(Result::ok);
    assert!(
        left.into_iter().all(|entry| !entry.path().is_dir()),
        "a scratch cgroup is left"
    );
}

#[test]
fn skips_and_own_addresses_pass_in_both_directions() {
    let world = World::new("skips");
    let applications = [
        "10.211.0.3:25",
        "10.211.0.3:9000",
        "10.211.0.3:4191",
        "[fd00:211::3]:25",
    ]
    .map(|addr| world.server.serve(addr));
    let outbound = Skips {
        outbound_ports: "25,4000-4200".parse().unwrap(),
        subnets: vec!["fd00:211::/64".parse().unwrap()],
        ..world.client.skips()
    };
    let inbound = Skips {
        inbound_ports: "25".parse().unwrap(),
        ..world.server.skips()
    };
    world
        .kernel
        .set_skips(world.client.cookie, &outbound)
        .unwrap();
    world
        .kernel
        .set_skips(world.server.cookie, &inbound)
        .unwrap();

    let [smtp, web, admin, smtp6] = &applications;
    for (to, application) in [
        ("10.211.0.3:25", smtp),
        ("10.211.0.3:4191", admin),
        ("[fd00:211::3]:25", smtp6),
    ] {
        let client = world.client.connect(to).unwrap();
        says_hello(&client, &accept(application));
    }
    assert!(world.count(Reason::PassSkipPort) > 0 && world.count(Reason::PassSkipNet) > 0);
    assert!(world.count(Reason::InboundSkip) > 0 && world.count(Reason::InboundMeshPort) > 0);
    assert!(world.count(Reason::GuardPassSkip) > 0);
    assert_eq!(world.count(Reason::Captured), 0);

    // A peer's network that is skipped goes to the application, every other peer to the proxy.
    let skipped = Skips {
        subnets: vec!["10.211.0.2/32".parse().unwrap()],
        ..world.server.skips()
    };
    for (skips, to_application) in [(world.server.skips(), false), (skipped, true)] {
        world.kernel.set_skips(world.server.cookie, &skips).unwrap();
        let client = world
            .dial(&world.client, "10.211.0.3:9000".parse().unwrap())
            .unwrap();
        let end = match to_application {
            true => accept(web),
            false => world.server.accept(ListenerSlot::Inbound4),
        };
        says_hello(&client, &end);
    }

    // The pod talks to itself: by its address, and by lo.
    for (listen, to) in [
        ("10.211.0.3:70", "10.211.0.3:70"),
        ("127.0.0.1:71", "127.0.0.1:71"),
    ] {
        let application = world.server.serve(listen);
        let client = world.server.connect(to).unwrap();
        says_hello(&client, &accept(&application));
    }
}

#[test]
fn a_second_address_that_nobody_entered_does_not_loop() {
    let world = World::new("second");
    world.server.netns.ip("addr add 10.212.0.9/32 dev eth0");
    let application = world.server.serve("10.212.0.9:80");
    let client = world.server.connect("10.212.0.9:80").unwrap();
    // Captured or not: the pod's rule comes after the table of local addresses.
    says_hello(&client, &accept(&application));
}

#[test]
fn connections_wait_while_there_is_no_listener() {
    let mut world = World::new("hold");
    world.client.deafen();
    world.server.deafen();
    for (to, reason) in [
        (SERVICE4, Reason::SlotEmptyOut),
        (SERVICE6, Reason::SlotEmptyOut),
    ] {
        let before = world.count(reason);
        assert!(
            is_held(world.client.connect_by(to, Protocol::TCP, BRIEFLY)),
            "{to}"
        );
        assert!(world.count(reason) > before, "{to}");
    }
    // Inbound: the SYN is sent again after a second, when the listener is there.
    for to in ["10.211.0.3:8080", "[fd00:211::3]:8080"] {
        let World {
            kernel,
            client,
            server,
            ..
        } = &mut world;
        let which = match to.starts_with('[') {
            true => ListenerSlot::Inbound6,
            false => ListenerSlot::Inbound4,
        };
        std::thread::scope(|scope| {
            let socket = client
                .netns
                .inside(|| tcp(Domain::for_address(to.parse().unwrap()), Protocol::TCP));
            kernel.tag_lent(socket.as_fd()).unwrap();
            let dial = scope.spawn(move || {
                socket.connect_timeout(&to.parse::<SocketAddr>().unwrap().into(), PATIENCE)
            });
            let empty = Reason::SlotEmptyIn;
            world::eventually(|| count(kernel, empty) > 0);
            server.listen(kernel);
            dial.join()
                .unwrap()
                .unwrap_or_else(|error| panic!("{to}: {error}"));
            drop(server.accept(which));
        });
        world.server.deafen();
    }
}

fn count(kernel: &Kernel, reason: Reason) -> u64 {
    let counters = kernel.counters().unwrap();
    counters.iter().find(|(of, _)| *of == reason).unwrap().1
}

#[test]
fn a_reused_socket_loses_our_mark_and_keeps_its_own() {
    let world = World::new("reuse");
    let application = world.client.serve("127.0.0.1:80");
    let socket = world
        .client
        .netns
        .inside(|| tcp(Domain::IPV4, Protocol::TCP));
    socket.set_mark(7).unwrap();
    socket
        .connect_timeout(&SERVICE4.parse::<SocketAddr>().unwrap().into(), PATIENCE)
        .unwrap();
    assert_eq!(socket.mark().unwrap(), 7 | Settings::MARK);
    drop(world.client.accept(ListenerSlot::Outbound4));
    disconnect(&socket);
    let lo: SocketAddr = "127.0.0.1:80".parse().unwrap();
    socket.connect_timeout(&lo.into(), PATIENCE).unwrap();
    assert_eq!(socket.mark().unwrap(), 7);
    drop(accept(&application));
}

#[test]
fn namespaces_inside_the_pod_are_guarded_too() {
    let world = World::new("nested");
    let nested = Netns::nested(&world.client.netns, "10.213.0.1", "10.213.0.2");
    world
        .server
        .netns
        .ip("route add 10.213.0.0/24 via 10.211.0.2");
    world
        .kernel
        .set_enrolled(world.server.cookie, false)
        .unwrap();
    let _application = world.server.serve("10.211.0.3:8080");
    let connect = || {
        let socket = nested.inside(|| tcp(Domain::IPV4, Protocol::TCP));
        let to: SocketAddr = "10.211.0.3:8080".parse().unwrap();
        socket.connect_timeout(&to.into(), BRIEFLY)
    };
    connect().expect("the pod forwards for what runs inside it");
    let known = PodKernel {
        cgroup: Some(world.cgroup()),
        ..world.client.known(Guard::Enforce)
    };
    world.kernel.add_pod(&known).unwrap();
    assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(world.count(Reason::GuardDropNested) > 0);
}

#[test]
fn ports_in_time_wait_and_cookies_answers_reach_the_proxy() {
    let world = World::new("cookies");
    let _application = world.server.serve("10.211.0.3:8080");
    let to: SocketAddr = "10.211.0.3:8080".parse().unwrap();
    let from: SocketAddr = "10.211.0.2:33333".parse().unwrap();
    // The end that closes first goes to TIME_WAIT: here the pod's, then the client's port comes
    // again.
    for round in 0..2 {
        let socket = world
            .client
            .netns
            .inside(|| tcp(Domain::IPV4, Protocol::TCP));
        socket.set_reuse_address(true).unwrap();
        world
            .client
            .netns
            .inside(|| socket.bind(&from.into()))
            .unwrap();
        world.kernel.tag_lent(socket.as_fd()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        let arrived = world.server.accept(ListenerSlot::Inbound4);
        assert_eq!(arrived.peer_addr().unwrap(), from, "round {round}");
        drop(arrived);
        assert!(is_readable(&socket, PATIENCE));
    }
    assert_eq!(world.count(Reason::SteeredInLookup), 1);

    // 2: always, not only when the queue is full.
    world
        .server
        .netns
        .inside(|| fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2"))
        .unwrap();
    let client = world.dial(&world.client, to).unwrap();
    says_hello(&client, &world.server.accept(ListenerSlot::Inbound4));
}

fn faults(world: &World, pod: &Pod, listeners: &[(ListenerSlot, u64)]) -> Vec<Fault> {
    let expected = Expected {
        uid: pod.place.uid,
        cookie: pod.cookie,
        slot: pod.place.slot,
        enrolled: true,
        listeners,
        ifindexes: &[pod.ifindex()],
    };
    world.kernel.verify(&expected).unwrap()
}

#[test]
fn what_is_pinned_is_adopted_and_what_is_gone_is_noticed_and_repaired() {
    let mut world = World::new("adopt");
    let listeners = ListenerSlot::ALL.map(|which| {
        let cookie = world.kernel.listener_cookie(CLIENT.slot, which).unwrap();
        (which, cookie.expect("a listener"))
    });
    assert_eq!(faults(&world, &world.client, &listeners), []);

    // The daemon ends and starts: nothing is detached in between, and nothing twice after.
    world.kernel = Kernel::open(&world.config).unwrap();
    assert_eq!(faults(&world, &world.client, &listeners), []);
    let mut slots: Vec<_> = world
        .kernel
        .known_pods()
        .unwrap()
        .iter()
        .map(|pod| pod.slot)
        .collect();
    slots.sort_unstable();
    assert_eq!(slots, [CLIENT.slot, SERVER.slot]);
    let mut pinned = world.kernel.pinned_pods().unwrap();
    pinned.sort();
    assert_eq!(pinned, [CLIENT.uid, SERVER.uid]);
    let client = world.client.connect(SERVICE4).unwrap();
    says_hello(&client, &world.client.accept(ListenerSlot::Outbound4));
    assert_eq!(world.count(Reason::Captured), 1);

    // Things go wrong.
    world.kernel.detach(CLIENT.uid).unwrap();
    fs::remove_file(world.config.bpffs.join("v1/links/capture_connect4")).unwrap();
    world.client.deafen();
    world
        .kernel
        .set_enrolled(world.client.cookie, false)
        .unwrap();
    let mut expected = vec![Fault::CgroupLink("capture_connect4"), Fault::PodDiffers];
    expected.extend(ListenerSlot::ALL.map(Fault::Listener));
    expected.extend([
        Fault::OutboundLink,
        Fault::InboundLink(world.client.ifindex()),
    ]);
    assert_eq!(faults(&world, &world.client, &listeners), expected);

    world.kernel.repair_cgroup_links().unwrap();
    let World { kernel, client, .. } = &mut world;
    client.enrol(kernel);
    assert_eq!(faults(&world, &world.client, &[]), []);
    let client = world.client.connect(SERVICE4).unwrap();
    says_hello(&client, &world.client.accept(ListenerSlot::Outbound4));

    // A pod that is gone can be forgotten.
    world.kernel.detach("wk-unknown").unwrap();
    world.kernel.remove_pod(12345, 77).unwrap();
}

#[test]
fn what_an_older_version_left_works_until_it_is_removed() {
    let world = World::new("older");
    let bpffs = &world.config.bpffs;
    fs::rename(
        bpffs.join(format!("v{}", weft_common::ABI)),
        bpffs.join("v0"),
    )
    .unwrap();
    let _app = world.server.serve("10.211.0.3:8080");
    let kernel = Kernel::open(&world.config).unwrap();
    let _captured = world.client.connect(SERVICE4).unwrap();
    world.client.accept(ListenerSlot::Outbound4);

    assert_eq!(kernel.remove_older().unwrap(), [bpffs.join("v0")]);
    assert!(!bpffs.join("v0").exists());
    let _free = world.client.connect("10.211.0.3:8080").unwrap();
    assert_eq!(world.count(Reason::Captured), 1, "the old programs are off");
    assert!(kernel.remove_older().unwrap().is_empty());
    assert!(
        count(&kernel, Reason::PassNotMeshed) > 0,
        "the new ones are on"
    );
}
