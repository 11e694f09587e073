//! The harness itself, without the mesh: what the other suites build on.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use weft_tests::{
    PodSpec, World, address::Families, apps, capture::Capture, cgroup, hammer::Hammer,
    leftovers::Leftovers, test_name,
};

#[test]
fn pods_on_two_nodes_reach_each_other_in_both_families() {
    for families in [Families::V4, Families::V6, Families::Dual] {
        let world = World::builder(test_name!())
            .families(families)
            .build()
            .unwrap();
        let pods = [("a", "n1"), ("b", "n1"), ("c", "n2")]
            .map(|(name, node)| world.pod(PodSpec::new(name, node)).unwrap());
        for (server, ip) in pods
            .iter()
            .flat_map(|pod| pod.ips().iter().map(move |ip| (pod, *ip)))
        {
            let listener = server
                .netns()
                .enter(|| TcpListener::bind((ip, 7000)))
                .unwrap();
            let _listening = listener.unwrap();
            for pod in &pods {
                let limit = Duration::from_secs(5);
                let connect = || TcpStream::connect_timeout(&(ip, 7000).into(), limit);
                pod.netns().enter(connect).unwrap().unwrap();
            }
        }
    }
}

#[test]
fn processes_of_a_pod_are_in_its_cgroup_and_namespace() {
    let world = World::builder(test_name!()).build().unwrap();
    let pod = world.pod(PodSpec::new("web", "n2")).unwrap();
    let process = pod.spawn("sleep", pod.launch("sleep").arg("600")).unwrap();
    assert_eq!(cgroup::processes(pod.cgroup()), [process.id()]);
    let of = |path: &Path| std::fs::metadata(path).unwrap();
    let inside = of(Path::new(&format!("/proc/{}/ns/net", process.id())));
    let named = of(&pod.netns().path());
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(inside.ino(), named.ino());
    let listed = std::fs::read_to_string(format!("/proc/{}/cgroup", process.id())).unwrap();
    let expected = format!("0::{}", pod.cgroup_below_mount().display());
    assert!(listed.lines().any(|line| line == expected), "{listed}");
}

#[test]
fn plaintext_between_nodes_is_seen_by_a_capture() {
    let world = World::builder(test_name!()).build().unwrap();
    let server = world.pod(PodSpec::new("web", "n1")).unwrap();
    let client = world.pod(PodSpec::new("client", "n2")).unwrap();
    let nginx = apps::nginx(&server).unwrap();
    let capture = Capture::between_nodes(&world, "clear").unwrap();
    let url = format!("http://{}/echo?canary-4711", server.at(apps::NGINX));
    let (status, body) = apps::curl(&client, &url, &[]).unwrap();
    assert_eq!((status, body.trim()), (200, "canary-4711"));
    let frames = capture.stop().unwrap();
    assert!(frames.contains(b"canary-4711"), "{} frames", frames.len());
    assert!(weft_tests::pcap::all_tls13(&frames, &[apps::NGINX]).is_err());
    drop(nginx);
}

#[test]
fn real_programs_start_and_answer_across_nodes() {
    let world = World::builder(test_name!()).build().unwrap();
    let client = world.pod(PodSpec::new("client", "n1")).unwrap();
    let [web, cache, db] =
        ["web", "cache", "db"].map(|name| world.pod(PodSpec::new(name, "n2")).unwrap());
    let _programs = [
        apps::nginx(&web).unwrap(),
        apps::redis(&cache).unwrap(),
        apps::postgres(&db).unwrap(),
    ];
    for at in [db.ips()[0], db.ips()[1]] {
        let answer = apps::sql(&client, (at, apps::POSTGRES).into(), "select 6*7").unwrap();
        assert_eq!(answer.trim(), "42");
    }
    let set = apps::redis_cli(&client, cache.at(apps::REDIS), &["set", "k", "v"]).unwrap();
    assert_eq!(set, "OK");
    let url = format!("http://{}/1k", web.at(apps::NGINX));
    let wrk = apps::wrk(&client, &url, 2, 1).unwrap();
    assert_eq!(wrk.errors, Vec::<String>::new());
    assert!(wrk.requests > 0, "{wrk:?}");
    for args in [&["--keep"][..], &[]] {
        let load = Hammer::start(&client, "load", web.at(apps::NGINX), args).unwrap();
        load.more(100).unwrap();
        load.stop_without_failure().unwrap();
    }
}

#[test]
fn every_socket_style_works_without_the_mesh() {
    let world = World::builder(test_name!()).build().unwrap();
    let server = world.pod(PodSpec::new("server", "n1")).unwrap();
    let client = world.pod(PodSpec::new("client", "n2")).unwrap();
    let listen = ["0.0.0.0:9000".to_owned(), "[::]:9000".to_owned()];
    let args = [&["serve".to_owned()][..], &listen].concat();
    let _serving = apps::own(&server, "socket-styles", &args).unwrap();
    for ip in server.ips() {
        let target = format!("{}", std::net::SocketAddr::new(*ip, 9000));
        let output = apps::run_own(&client, "socket-styles", &["connect", &target]).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.lines().count(), 16);
        for line in output.stdout.lines() {
            assert!(line.contains("\"ok\":true"), "{line}");
        }
    }
}

#[test]
fn nothing_is_left_when_a_world_goes() {
    let world = World::builder(test_name!()).build().unwrap();
    let pod = world.pod(PodSpec::new("web", "n1")).unwrap();
    let process = pod.spawn("sleep", pod.launch("sleep").arg("600")).unwrap();
    let leftovers = Leftovers::of(world.prefix());
    let found = leftovers.find().unwrap();
    assert_eq!(found.processes, [process.id()]);
    assert_eq!(found.namespaces.len(), 4, "two nodes, their network, a pod");
    assert_eq!(found.mounts.len(), 2);
    drop(world);
    let left = leftovers.find().unwrap();
    assert!(left.is_empty(), "{left}");
}
