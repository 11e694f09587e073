//! The order of enrolment, and what the table does with it, against fakes.

use std::{collections::BTreeMap, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use socket2::Socket;
use tokio_util::sync::CancellationToken;
use weft_api::model::{Guard, Mesh, Pod, Settings};

use super::{
    desired::{Desired, tests::pod},
    enrol::{Moment, Plan, Tools, enrol},
    fake::Fake,
    legacy::Connection,
    record::{Made, Record, Records, tests::sandbox},
    requests::{Announcement, Lending, RequestError},
    sockets::{self, Family, Kind},
    status::Standing,
    table::{Config, Parts, Pods},
};
use crate::{
    kernel::Fault,
    lend::{Hub, Lender as _},
    metrics::Metrics,
};

const IN: [&str; 16] = [
    "add Enforce",
    "skips",
    "bind",
    "tag",
    "tag",
    "tag",
    "place Outbound4",
    "place Inbound4",
    "route",
    "steer out",
    "steer in",
    "prove",
    "enrolled true",
    "verify",
    "",
    "",
];

const OUT: [&str; 5] = ["enrolled false", "unroute", "detach", "clear", "remove"];

fn tools(fake: &Arc<Fake>) -> Tools {
    Tools {
        datapath: Arc::clone(fake) as _,
        inside: Arc::clone(fake) as _,
        cgroup_mount: None,
    }
}

fn plan(moment: Moment) -> Plan {
    Plan {
        sandbox: sandbox("u1"),
        slot: 0,
        settings: Settings::default(),
        guard: Guard::Enforce,
        moment,
        held: Vec::new(),
        cut_legacy: false,
        cancel: CancellationToken::new(),
    }
}

fn steps_in() -> Vec<&'static str> {
    IN.into_iter().filter(|step| !step.is_empty()).collect()
}

#[test]
fn a_pod_enters_guarded_first_and_captured_last() {
    let fake = Fake::new();
    let enrolled = enrol(&tools(&fake), &plan(Moment::Start)).unwrap();
    assert_eq!(fake.taken(), steps_in());
    assert_eq!(enrolled.guard, Guard::Enforce);
    assert_eq!(enrolled.listeners.len(), 3);
}

#[test]
fn whatever_fails_is_undone() {
    for fails in steps_in() {
        let fake = Fake::new();
        *fake.fails.lock() = Some(fails);
        enrol(&tools(&fake), &plan(Moment::Start)).unwrap_err();
        let calls = fake.taken();
        assert!(
            calls.ends_with(&OUT.map(str::to_owned)),
            "{fails}: {calls:?}"
        );
    }
}

#[test]
fn a_step_that_left_a_fault_counts_as_failed() {
    let fake = Fake::new();
    fake.faults.lock().push(Fault::OutboundLink);
    let error = enrol(&tools(&fake), &plan(Moment::Start)).unwrap_err();
    assert_eq!(error.label(), "incomplete");
    assert!(fake.taken().ends_with(&OUT.map(str::to_owned)));
}

#[test]
fn deletion_calls_an_enrolment_off_between_two_steps() {
    let fake = Fake::new();
    let plan = plan(Moment::Start);
    let cancel = plan.cancel.clone();
    *fake.hook.lock() = Some(Box::new(move |call| {
        if call == "route" {
            cancel.cancel();
        }
    }));
    let error = enrol(&tools(&fake), &plan).unwrap_err();
    assert_eq!(error.label(), "called_off");
    let calls = fake.taken();
    assert!(!calls.contains(&"steer out".to_owned()), "{calls:?}");
    assert!(calls.ends_with(&OUT.map(str::to_owned)), "{calls:?}");
}

#[test]
fn the_guard_of_a_running_pod_waits_for_what_it_is_opening() {
    for (is_opening, expected) in [(false, Guard::Enforce), (true, Guard::Audit)] {
        let fake = Fake::new();
        fake.connections.lock().insert(connection(is_opening));
        let enrolled = enrol(&tools(&fake), &plan(Moment::Late)).unwrap();
        assert_eq!(fake.taken()[0], "add Audit");
        assert_eq!(enrolled.guard, expected, "opening: {is_opening}");
        assert_eq!(enrolled.legacy.len(), 1);
    }
}

fn connection(is_opening: bool) -> Connection {
    Connection {
        local: "10.0.0.1:4000".parse().unwrap(),
        remote: "10.0.0.9:80".parse().unwrap(),
        is_opening,
    }
}

struct World {
    fake: Arc<Fake>,
    pods: Arc<Pods>,
    desired: Arc<Desired>,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::new();
        let desired = Arc::new(Desired::open(folder.path(), Vec::new()));
        let pods = Pods::new(Parts {
            tools: tools(&fake),
            desired: Arc::clone(&desired),
            hub: Arc::new(Hub::new(folder.path().join("generation"))),
            records: Records::open(folder.path()).unwrap(),
            metrics: Metrics::register(&mut Registry::default()),
            config: Config {
                guard: Guard::Enforce,
                budget: Duration::from_secs(2),
                leave_grace: Duration::ZERO,
                adopt_grace: Duration::ZERO,
                interval: Duration::from_secs(3),
                cut_legacy: false,
                run_dir: folder.path().to_owned(),
            },
        });
        Self {
            fake,
            pods,
            desired,
            folder,
        }
    }

    fn standing(&self, uid: &str) -> Option<Standing> {
        let mut status = self.pods.status().into_iter();
        status.find(|pod| pod.uid == uid).map(|pod| pod.standing)
    }

    fn records(&self) -> usize {
        let records = Records::open(self.folder.path()).unwrap();
        records.load().unwrap().len()
    }
}

fn announcement(uid: &str, ip: &str) -> Announcement {
    Announcement {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: format!("web-{uid}"),
        container_id: format!("container-{uid}"),
        ifname: "eth0".to_owned(),
        netns: "/dev/null".into(),
        ips: vec![ip.parse().unwrap()],
        cgroup: None,
    }
}

fn meshed(uid: &str) -> Pod {
    pod(uid, Mesh::Meshed)
}

fn unmeshed(uid: &str) -> Pod {
    pod(uid, Mesh::NotMeshed("nobody asked".to_owned()))
}

#[tokio::test]
async fn add_twice_is_add_once_and_delete_leaves_nothing() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    assert_eq!(world.fake.taken(), steps_in());
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    assert_eq!(world.fake.taken(), [""; 0]);
    assert_eq!(world.standing("u1"), Some(Standing::Meshed));
    world.pods.delete("container-other", "u1").await;
    assert_eq!(
        world.standing("u1"),
        Some(Standing::Meshed),
        "another sandbox"
    );
    world.pods.delete("container-u1", "").await;
    assert_eq!(world.fake.taken(), OUT);
    assert_eq!((world.standing("u1"), world.records()), (None, 0));
    world.pods.delete("container-u1", "u1").await;
}

#[tokio::test]
async fn a_pod_outside_the_mesh_is_untouched_until_it_is_asked_for() {
    let world = World::new();
    world.desired.upsert(unmeshed("u1"));
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    assert_eq!(world.fake.taken(), [""; 0]);
    assert_eq!(
        (world.standing("u1"), world.records()),
        (Some(Standing::Unmeshed), 1)
    );

    world.desired.upsert(meshed("u1"));
    world.pods.changed(vec!["u1".to_owned()]);
    world.pods.drain().await;
    assert_eq!(world.fake.taken()[0], "add Audit", "it runs already");
    assert_eq!(world.standing("u1"), Some(Standing::Meshed));

    world.desired.upsert(unmeshed("u1"));
    world.pods.changed(vec!["u1".to_owned()]);
    world.pods.drain().await;
    let calls = world.fake.taken();
    assert_eq!(calls[0], "enrolled false", "capture goes first: {calls:?}");
    assert!(calls.ends_with(&OUT.map(str::to_owned)), "{calls:?}");
    assert_eq!(
        (world.standing("u1"), world.records()),
        (Some(Standing::Unmeshed), 1)
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_starts_who_is_unknown_and_deletion_ends_the_wait() {
    let world = World::new();
    let error = world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap_err();
    assert!(matches!(error, RequestError::TryAgain(_)), "{error}");
    let (added, ()) = tokio::join!(world.pods.add(announcement("u1", "10.0.0.1")), async {
        while world.standing("u1").is_none() {
            tokio::task::yield_now().await;
        }
        world.pods.delete("container-u1", "u1").await;
    });
    assert!(added.unwrap_err().to_string().contains("deleted meanwhile"));
    assert_eq!((world.standing("u1"), world.records()), (None, 0));
}

#[tokio::test]
async fn a_pod_with_the_address_of_another_replaces_it() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    world.desired.upsert(meshed("u2"));
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    world
        .pods
        .add(announcement("u2", "10.0.0.1"))
        .await
        .unwrap();
    assert_eq!(world.standing("u1"), None);
    assert_eq!(world.standing("u2"), Some(Standing::Meshed));
    assert_eq!(world.records(), 1);
}

#[tokio::test]
async fn what_failed_is_tried_again_and_what_broke_is_repaired() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    *world.fake.fails.lock() = Some("prove");
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap_err();
    assert_eq!(world.standing("u1"), Some(Standing::Failed));
    *world.fake.fails.lock() = None;
    let entry = world.pods.find("u1").unwrap();
    world.pods.look_after(&entry).await;
    assert_eq!(world.standing("u1"), Some(Standing::Meshed));
    world.fake.taken();

    *world.fake.is_unrouted.lock() = true;
    *world.fake.faults.lock() = vec![Fault::OutboundLink, Fault::PodMissing];
    world.pods.look_after(&entry).await;
    assert_eq!(
        world.fake.taken(),
        [
            "verify",
            "steer out",
            "steer in",
            "add Enforce",
            "skips",
            "enrolled true",
            "route"
        ]
    );
    let status = world.pods.status();
    assert_eq!(status[0].faults, ["outbound-link", "pod-missing", "rule"]);
    world.pods.look_after(&entry).await;
    assert_eq!(world.pods.status()[0].faults, [""; 0]);
}

#[tokio::test]
async fn settings_follow_without_touching_sockets() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    world.fake.taken();
    let mut changed = meshed("u1");
    changed.settings.guard = Guard::Audit;
    world.desired.upsert(changed);
    world.pods.changed(vec!["u1".to_owned()]);
    world.pods.drain().await;
    assert_eq!(world.fake.taken(), ["skips", "guard Audit"]);
}

#[tokio::test]
async fn sockets_are_made_for_meshed_pods_only() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    let none = world.pods.make_sockets("u1", Family::V4, 1);
    assert_eq!(none.unwrap_err(), "pod u1 is not meshed");
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    let sockets = world.pods.make_sockets("u1", Family::V4, 3).unwrap();
    assert_eq!(sockets.len(), 3);
    world.pods.delete("container-u1", "u1").await;
    world.pods.make_sockets("u1", Family::V4, 1).unwrap_err();
}

#[tokio::test]
async fn a_successor_adopts_what_is_recorded() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    world
        .pods
        .add(announcement("u1", "10.0.0.1"))
        .await
        .unwrap();
    let before = Records::open(world.folder.path()).unwrap().load().unwrap();
    world.fake.taken();

    let next = World {
        folder: world.folder,
        ..World::new()
    };
    let pods = Pods::new(Parts {
        records: Records::open(next.folder.path()).unwrap(),
        tools: tools(&next.fake),
        desired: Arc::clone(&next.desired),
        hub: Arc::new(Hub::new(next.folder.path().join("generation"))),
        metrics: Metrics::register(&mut Registry::default()),
        config: Config {
            adopt_grace: Duration::ZERO,
            ..next.pods.parts.config.clone()
        },
    });
    pods.adopt().await.unwrap();
    pods.drain().await;
    let status = pods.status();
    assert_eq!(status[0].standing, Standing::Meshed);
    assert_eq!(
        status[0].slot,
        before[0].made.as_ref().map(|made| made.slot)
    );
    let calls = next.fake.taken();
    assert!(
        !calls.contains(&"prove".to_owned()),
        "its connections live: {calls:?}"
    );
    assert!(
        calls.contains(&"bind".to_owned()),
        "nobody brought listeners"
    );
    assert!(
        before[0]
            .made
            .as_ref()
            .unwrap()
            .listeners
            .contains_key(&Kind::OutboundV4)
    );
}

#[tokio::test]
async fn only_the_sockets_that_were_made_for_a_pod_are_taken_back() {
    let world = World::new();
    world.desired.upsert(meshed("u1"));
    let (own, foreign) = (listening(), listening());
    let made = Made {
        cookie: sockets::netns_cookie(own.as_fd()).unwrap(),
        slot: 5,
        listeners: BTreeMap::from([(Kind::OutboundV4, own.cookie().unwrap())]),
    };
    let record = Record {
        sandbox: sandbox("u1"),
        made: Some(made),
        pod: None,
    };
    Records::open(world.folder.path())
        .unwrap()
        .keep(&record)
        .unwrap();
    *world.fake.is_held_elsewhere.lock() = true;
    let pods = Pods::new(Parts {
        records: Records::open(world.folder.path()).unwrap(),
        tools: tools(&world.fake),
        desired: Arc::clone(&world.desired),
        hub: Arc::new(Hub::new(world.folder.path().join("generation"))),
        metrics: Metrics::register(&mut Registry::default()),
        config: Config {
            adopt_grace: Duration::from_secs(60),
            ..world.pods.parts.config.clone()
        },
    });
    pods.adopt().await.unwrap();
    let lending = Lending(Arc::clone(&pods));
    let standing = || pods.status()[0].standing;
    lending
        .take_back("u1", vec![(Kind::OutboundV4, foreign.into())])
        .await;
    assert_eq!(standing(), Standing::Adopting);
    let wrong_kind = own.try_clone().unwrap();
    lending
        .take_back("u1", vec![(Kind::InboundV4, wrong_kind.into())])
        .await;
    assert_eq!(standing(), Standing::Adopting);
    let cookie = own.cookie().unwrap();
    lending
        .take_back("u1", vec![(Kind::OutboundV4, own.into())])
        .await;
    assert_eq!(standing(), Standing::Meshed);
    let made = Records::open(world.folder.path()).unwrap().load().unwrap();
    let made = made[0].made.as_ref().unwrap();
    assert_eq!((made.slot, made.listeners[&Kind::OutboundV4]), (5, cookie));
}

fn listening() -> Socket {
    let socket = sockets::dial(Family::V4).unwrap();
    let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&loopback.into()).unwrap();
    sockets::listen(&socket).unwrap();
    socket
}
