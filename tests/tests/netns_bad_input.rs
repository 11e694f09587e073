//! Nonsense from every side: one clear error, and harm to nobody else.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::ensure;
use socket2::{Domain, SockAddr, Socket, Type};
use weft_tests::{PodSpec, apps, eventually, fixture::Pair, process::Launch, test_name};

#[test]
fn garbage_on_the_lending_socket_harms_nobody() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let node = pair.world.node("n1").unwrap();
    let pids = (node.daemon_pid(), node.agent_pid());
    let path = node.run_dir().join("node.sock");
    let long = vec![0xff; 60_000];
    // Unknown fields, no protobuf at all, empty, a hello of version 0, a request before any hello.
    let packets: [&[u8]; 5] = [
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        &[0x0a, 0],
        &long,
    ];
    for packet in packets {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket.connect(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.send(packet).ok();
        drop(socket);
    }
    pair.works().unwrap();
    let late = pair.world.pod(PodSpec::new("late", "n1").meshed()).unwrap();
    pair.world.wait_ready(&late).unwrap();
    assert_eq!((node.daemon_pid(), node.agent_pid()), pids);
}

#[test]
fn strangers_may_not_borrow_sockets() {
    let pair = Pair::build(test_name!()).unwrap();
    let node = pair.world.node("n1").unwrap();
    let path = node.run_dir().join("node.sock");
    let program = node.public_binary("socket-styles").unwrap();
    let launch = Launch::new(program).arg("borrow").arg(path).user("1");
    let output = launch.output(Duration::from_secs(20)).unwrap();
    let told = output.stdout.trim();
    assert!(told.starts_with("refused") || told == "got 0", "{output:?}");
}

#[test]
fn half_a_tls_hello_holds_nobody_up() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let outsider = pair.world.pod(PodSpec::new("outsider", "n1")).unwrap();
    let server = pair.server.at(apps::NGINX);
    let starts: [&[u8]; 5] = [
        b"\x16",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x16\x03\x01\xff\xff",
        b"PRI * HTTP/2.0\r\n",
        b"",
    ];
    let open = || {
        let connect = |start: &&[u8]| {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
            stream.write_all(start)?;
            Ok::<_, std::io::Error>(stream)
        };
        let all = (0..10).flat_map(|_| starts.iter().map(connect));
        all.collect::<Result<Vec<_>, _>>()
    };
    let streams = outsider.netns().enter(open).unwrap().unwrap();
    for _ in 0..5 {
        pair.works().unwrap();
    }
    drop(streams);
    pair.works().unwrap();
}

#[test]
fn a_megabyte_of_header_is_refused_and_the_next_request_served() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let pid = pair.world.node("n1").unwrap().agent_pid();
    let send = |bytes: &[u8]| {
        let file = pair.client.folder().join("request");
        std::fs::write(&file, bytes).unwrap();
        let target = pair.service[0];
        let line = format!(
            "exec 3<>/dev/tcp/{}/{}; cat {} >&3; timeout 10 head -c 200 <&3",
            target.ip(),
            target.port(),
            file.display()
        );
        let launch = pair.client.launch("bash").args(["-c", &line]);
        launch.output(Duration::from_secs(30)).unwrap().stdout
    };
    let huge = "x".repeat(1 << 20);
    for request in [
        format!("GET / HTTP/1.1\r\nhost: web\r\nx-huge: {huge}\r\n\r\n"),
        format!("GET /{huge} HTTP/1.1\r\nhost: web\r\n\r\n"),
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\n{}\r\n",
            "x: y\r\n".repeat(100_000)
        ),
    ] {
        let answer = send(request.as_bytes());
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    pair.works().unwrap();
    assert_eq!(pair.world.node("n1").unwrap().agent_pid(), pid);
}

#[test]
fn malformed_manifests_are_named_and_change_nothing() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let manifests = pair.world.manifests();
    for (name, text) in [
        ("broken", "apiVersion: v1\nkind: Pod\nmetadata: [unclosed\n"),
        (
            "strange",
            "apiVersion: v1\nkind: Teapot\nmetadata: {name: t}\n",
        ),
        (
            "service-web",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {\n",
        ),
    ] {
        manifests.write_text(name, text).unwrap();
    }
    let log = pair.world.folder().join("logs/weft-controller.log");
    eventually("the controller names the broken file", || {
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains("broken.yaml"), "not in its log");
        Ok(())
    })
    .unwrap();
    for _ in 0..5 {
        pair.works().unwrap();
    }
    let late = pair.world.pod(PodSpec::new("late", "n1").meshed()).unwrap();
    pair.world.wait_ready(&late).unwrap();
}

#[test]
fn an_agent_with_another_nodes_token_gets_nothing() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let [first, second] = pair.world.nodes() else {
        unreachable!("two nodes");
    };
    let right = second.join().unwrap();
    let mut wrong = right.clone();
    wrong.token = first.join().unwrap().token;
    second.kill_agent();
    second.set_join(wrong).unwrap();
    // Whether it calls itself ready or not: it has no certificate for anybody.
    second.start_agent().ok();
    assert!(
        pair.works().is_err(),
        "served with the token of another node"
    );
    let log = std::fs::read_to_string(second.logs().join("weft-agent.log")).unwrap();
    assert!(!log.contains(&right.token), "the token is in the log");
    second.kill_agent();
    second.set_join(right).unwrap();
    second.start_agent().unwrap();
    pair.works_soon().unwrap();
}

#[test]
fn bytes_after_the_end_of_a_connection_do_not_hang_the_client() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let outsider = pair.world.pod(PodSpec::new("outsider", "n1")).unwrap();
    let server = pair.server.at(apps::NGINX);
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"\x00\x01\x02 no protocol at all\r\n\r\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    // nginx itself says 400 to what no proxy understands.
    let answer = outsider.netns().enter(talk).unwrap().unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 400"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}
