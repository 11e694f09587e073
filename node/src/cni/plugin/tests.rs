//! The plugin against the specification: a daemon in a thread, or none.

use std::{os::unix::net::UnixListener, thread};

use super::*;
use crate::pods::desired::CachedPod;

const PREVIOUS: &str =
    r#"{"ips":[{"address":"10.0.0.1/24"},{"address":"fd00::1/64"}],"x":{"b":1,"a":2}}"#;

struct Setup {
    folder: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Answers one request, and returns it.
    fn daemon(&self, answer: &Response) -> thread::JoinHandle<Request> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let mut answer = serde_json::to_vec(answer).unwrap();
        answer.push(b'\n');
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(&answer).unwrap();
            serde_json::from_str(&line).unwrap()
        })
    }

    fn config(&self, version: &str, previous: bool) -> String {
        let previous = if previous {
            format!(r#","prevResult":{PREVIOUS}"#)
        } else {
            String::new()
        };
        format!(
            r#"{{"cniVersion":"{version}","name":"n","type":"weft-cni","socket":{:?},"runtimeConfig":{{"cgroupPath":"/kubepods/pod1"}},"cni.dev/valid-attachments":[{{"containerID":"c2","ifname":"eth0"}}]{previous}}}"#,
            self.socket()
        )
    }

    fn run(&self, command: &str) -> Outcome {
        run_with(command, &self.config("1.1.0", true))
    }
}

fn run_with(command: &str, config: &str) -> Outcome {
    let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1";
    let environment = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", arguments),
    ];
    run(&mut Invocation {
        environment: environment
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect(),
        config: &mut config.as_bytes(),
    })
}

fn code_of(outcome: &Outcome) -> u64 {
    assert!(!outcome.success, "{outcome:?}");
    let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(error["cniVersion"].is_string() && error["msg"].is_string());
    error["code"].as_u64().unwrap()
}

#[test]
fn add_tells_the_daemon_everything_and_passes_the_result_through_unchanged() {
    let setup = Setup::new();
    let daemon = setup.daemon(&Response::Done);
    let outcome = setup.run("ADD");
    assert_eq!(outcome.stdout, PREVIOUS);
    assert!(outcome.success);
    assert_eq!(
        daemon.join().unwrap(),
        Request::Add(Attachment {
            container_id: "c1".to_owned(),
            netns: "/run/netns/x".into(),
            ifname: "eth0".to_owned(),
            pod_namespace: "shop".to_owned(),
            pod_name: "web".to_owned(),
            pod_uid: "u1".to_owned(),
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            cgroup: Some("/kubepods/pod1".into()),
        })
    );
}

#[test]
fn the_daemons_failure_is_the_runtimes() {
    let setup = Setup::new();
    let failure = Failure {
        code: code::TRY_AGAIN,
        msg: "m".to_owned(),
        details: "d".to_owned(),
    };
    let daemon = setup.daemon(&Response::Failed(failure));
    let outcome = setup.run("ADD");
    daemon.join().unwrap();
    let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let expected = json!({"cniVersion": "1.1.0", "code": 11, "msg": "m", "details": "d"});
    assert_eq!(error, expected);
}

#[test]
fn garbage_collection_names_what_is_left() {
    let setup = Setup::new();
    let daemon = setup.daemon(&Response::Done);
    assert!(setup.run("GC").success);
    let valid = vec!["c2".to_owned()];
    assert_eq!(daemon.join().unwrap(), Request::Gc { valid });
}

#[test]
fn without_the_daemon_only_what_adds_to_the_mesh_fails() {
    let setup = Setup::new();
    for (command, expected) in [
        ("DEL", None),
        ("GC", None),
        ("STATUS", Some(50)),
        ("CHECK", Some(11)),
        ("ADD", Some(11)),
    ] {
        let outcome = setup.run(command);
        match expected {
            None => assert_eq!(
                (outcome.success, outcome.stdout.as_str()),
                (true, ""),
                "{command}"
            ),
            Some(code) => assert_eq!(code_of(&outcome), code, "{command}"),
        }
    }
}

#[test]
fn without_the_daemon_pods_start_that_are_known_to_be_outside() {
    for (meshed, expected) in [(false, true), (true, false)] {
        let setup = Setup::new();
        let mut cache = Cache::default();
        let cached = CachedPod {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            meshed,
            record: String::new(),
        };
        cache.pods.insert("u1".to_owned(), cached);
        let path = setup.folder.path().join(CACHE_FILE);
        fs::write(path, serde_json::to_vec(&cache).unwrap()).unwrap();
        assert_eq!(setup.run("ADD").success, expected);
        let note = setup.folder.path().join(MISSED).join("c1.json");
        assert_eq!(note.exists(), expected, "the daemon learns of it later");
        assert!(setup.run("DEL").success);
        assert!(!note.exists());
    }
}

#[test]
fn wrong_input_is_named_with_its_number() {
    let setup = Setup::new();
    for (command, config, expected) in [
        ("ADD", "{", 6),
        ("ADD", &setup.config("0.4.0", true), 1),
        ("ADD", &setup.config("1.1.0", false), 7),
        ("NONSENSE", &setup.config("1.1.0", true), 4),
        ("", &setup.config("1.1.0", true), 4),
    ] {
        let outcome = run_with(command, config);
        assert_eq!(code_of(&outcome), expected, "{command} {config}");
    }
    let versions = run_with("VERSION", "");
    let versions: Value = serde_json::from_str(&versions.stdout).unwrap();
    assert_eq!(versions["supportedVersions"], json!(["1.0.0", "1.1.0"]));
}
