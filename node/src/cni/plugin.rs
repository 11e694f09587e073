//! The CNI plugin: reads what the runtime says from environment and standard input, asks the daemon,
//! writes what the specification wants to standard output.
//!
//! Chained, versions 1.0.0 and 1.1.0: the previous plugin's result is passed on unchanged. DEL and
//! GC succeed without the daemon, which finds out by itself. ADD without the daemon lets pods start
//! that are known not to be meshed, by the daemon's cache, and leaves a note for it; others have to
//! try again, so that no pod that belongs into the mesh ever starts outside of it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::protocol::{Attachment, Failure, MAX_BYTES, MISSED, Request, Response, SOCKET, code};
use crate::pods::{
    desired::{CACHE_FILE, Cache},
    record::write_whole,
};

/// Versions of the specification, oldest first.
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

/// Longer than the daemon's budget for an ADD: its answer says more than a timeout here would.
const PATIENCE: Duration = Duration::from_secs(4);

/// The largest network configuration that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// Namespaces whose pods start without the mesh while the daemon is away and has no cache.
const NEVER_WAIT: [&str; 2] = ["kube-system", "linkerd"];

/// What the runtime gives the plugin.
pub struct Invocation<'a> {
    /// The environment.
    pub environment: BTreeMap<String, OsString>,
    /// Standard input.
    pub config: &'a mut dyn Read,
}

/// What is written to standard output, and whether the exit code is 0.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// JSON, or nothing.
    pub stdout: String,
    /// Whether the command succeeded.
    pub success: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    cni_version: String,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(borrow, default)]
    prev_result: Option<&'a RawValue>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<ValidAttachment>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    cgroup_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PrevResult {
    ips: Vec<PrevIp>,
}

#[derive(Deserialize)]
struct PrevIp {
    address: String,
}

/// Runs one command.
pub fn run(invocation: &mut Invocation<'_>) -> Outcome {
    let command = invocation.variable("CNI_COMMAND");
    let mut text = String::new();
    let read = (&mut *invocation.config)
        .take(MAX_CONFIG)
        .read_to_string(&mut text);
    let result = read
        .map_err(|error| failure(code::DECODE, "network configuration cannot be read", error))
        .and_then(|_length| dispatch(&command, invocation, &text));
    match result {
        Ok(stdout) => Outcome {
            stdout,
            success: true,
        },
        Err(failure) => Outcome {
            stdout: error_json(&text, &failure),
            success: false,
        },
    }
}

fn dispatch(command: &str, invocation: &Invocation<'_>, text: &str) -> Result<String, Failure> {
    if command == "VERSION" {
        let version = VERSIONS[VERSIONS.len() - 1];
        return Ok(json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string());
    }
    let config: Config<'_> = serde_json::from_str(text).map_err(|error| {
        failure(
            code::DECODE,
            "network configuration is not understood",
            error,
        )
    })?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        return Err(failure(
            code::INCOMPATIBLE_VERSION,
            format!("CNI version {:?} is not supported", config.cni_version),
            format!("set cniVersion to one of {VERSIONS:?}"),
        ));
    }
    let socket = config
        .socket
        .clone()
        .unwrap_or_else(|| Path::new("/run/weft").join(SOCKET));
    match command {
        "ADD" => add(invocation, &config, &socket),
        "DEL" => {
            // Without the daemon: it finds by itself that the namespace is gone.
            let attachment = attachment(invocation, &config)?;
            forget_missed(&socket, &attachment.container_id);
            ask(&socket, &Request::Del(attachment)).ok();
            Ok(String::new())
        }
        "CHECK" => {
            let attachment = attachment(invocation, &config)?;
            answered(ask(&socket, &Request::Check(attachment)), &socket)
        }
        "STATUS" => match ask(&socket, &Request::Ready) {
            Ok(_response) => Ok(String::new()),
            Err(error) => Err(failure(
                code::NOT_AVAILABLE,
                "weft-node is not running on this node",
                format!("{}: {error}", socket.display()),
            )),
        },
        "GC" => {
            let valid = config.valid_attachments.iter();
            let valid = valid.map(|attachment| attachment.container_id.clone());
            let request = Request::Gc {
                valid: valid.collect(),
            };
            ask(&socket, &request).ok();
            Ok(String::new())
        }
        _ => Err(failure(
            code::INVALID_ENVIRONMENT,
            format!("CNI_COMMAND is {command:?}"),
            "this program is run by container runtimes: ADD, DEL, CHECK, STATUS, GC or VERSION",
        )),
    }
}

fn add(invocation: &Invocation<'_>, config: &Config<'_>, socket: &Path) -> Result<String, Failure> {
    let Some(previous) = config.prev_result else {
        return Err(failure(
            code::INVALID_CONFIG,
            "weft-cni got no prevResult",
            "it is a chained plugin: put it last in the list of plugins",
        ));
    };
    let attachment = attachment(invocation, config)?;
    if attachment.netns.as_os_str().is_empty() {
        return Err(missing("CNI_NETNS"));
    }
    let response = match ask(socket, &Request::Add(attachment.clone())) {
        Err(error) if is_away(&error) => return alone(socket, &attachment, previous),
        response => response,
    };
    answered(response, socket)?;
    Ok(previous.get().to_owned())
}

/// ADD while no daemon runs.
fn alone(socket: &Path, attachment: &Attachment, previous: &RawValue) -> Result<String, Failure> {
    let run_dir = socket.parent().unwrap_or(Path::new("/run/weft"));
    let cache = Cache::load(&run_dir.join(CACHE_FILE));
    let namespace = &attachment.pod_namespace;
    let may_start = match cache.pods.get(&attachment.pod_uid) {
        Some(pod) => !pod.meshed,
        None => NEVER_WAIT.contains(&namespace.as_str()) || cache.is_unmeshed_namespace(namespace),
    };
    if !may_start {
        return Err(failure(
            code::TRY_AGAIN,
            "weft-node is not running on this node, and the pod may belong into the mesh",
            format!("nobody listens at {}", socket.display()),
        ));
    }
    // The daemon enrols it later if that turns out to be wanted.
    if let Some(path) = missed_path(socket, &attachment.container_id)
        && let Ok(text) = serde_json::to_vec(attachment)
    {
        fs::create_dir_all(run_dir.join(MISSED))
            .and_then(|()| write_whole(&path, &text))
            .ok();
    }
    Ok(previous.get().to_owned())
}

fn attachment(invocation: &Invocation<'_>, config: &Config<'_>) -> Result<Attachment, Failure> {
    let container_id = invocation.variable("CNI_CONTAINERID");
    if container_id.is_empty() {
        return Err(missing("CNI_CONTAINERID"));
    }
    let arguments = invocation.variable("CNI_ARGS");
    let argument = |name: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
            .unwrap_or_default()
    };
    Ok(Attachment {
        container_id,
        netns: invocation.variable("CNI_NETNS").into(),
        ifname: invocation.variable("CNI_IFNAME"),
        pod_namespace: argument("K8S_POD_NAMESPACE"),
        pod_name: argument("K8S_POD_NAME"),
        pod_uid: argument("K8S_POD_UID"),
        ips: config.prev_result.map(addresses).unwrap_or_default(),
        cgroup: config.runtime_config.cgroup_path.clone(),
    })
}

fn addresses(previous: &RawValue) -> Vec<IpAddr> {
    let previous: PrevResult = serde_json::from_str(previous.get()).unwrap_or_default();
    let addresses = previous.ips.iter();
    addresses
        .filter_map(|ip| ip.address.split('/').next()?.parse().ok())
        .collect()
}

fn ask(socket: &Path, request: &Request) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_BYTES)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Asks the daemon for its status.
///
/// # Errors
/// When it does not run.
pub fn ask_status(run_dir: &Path) -> io::Result<super::protocol::NodeStatus> {
    match ask(&run_dir.join(SOCKET), &Request::Status)? {
        Response::Status(status) => Ok(status),
        Response::Done | Response::Failed(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn answered(response: io::Result<Response>, socket: &Path) -> Result<String, Failure> {
    match response {
        Ok(Response::Done | Response::Status(_)) => Ok(String::new()),
        Ok(Response::Failed(failure)) => Err(failure),
        Err(error) => Err(failure(
            code::TRY_AGAIN,
            "weft-node did not answer",
            format!("{}: {error}", socket.display()),
        )),
    }
}

fn is_away(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn missed_path(socket: &Path, container_id: &str) -> Option<PathBuf> {
    let is_name = container_id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    is_name.then(|| {
        socket
            .with_file_name(MISSED)
            .join(format!("{container_id}.json"))
    })
}

fn forget_missed(socket: &Path, container_id: &str) {
    if let Some(path) = missed_path(socket, container_id) {
        fs::remove_file(path).ok();
    }
}

fn error_json(config: &str, failure: &Failure) -> String {
    let asked = serde_json::from_str::<Value>(config).ok();
    let asked = asked
        .as_ref()
        .and_then(|config| config["cniVersion"].as_str());
    let version = asked
        .filter(|version| VERSIONS.contains(version))
        .unwrap_or(VERSIONS[0]);
    json!({
        "cniVersion": version,
        "code": failure.code,
        "msg": failure.msg,
        "details": failure.details,
    })
    .to_string()
}

fn missing(variable: &str) -> Failure {
    failure(
        code::INVALID_ENVIRONMENT,
        format!("{variable} is not set"),
        "this program is run by container runtimes",
    )
}

fn failure(code: u32, msg: impl Into<String>, details: impl std::fmt::Display) -> Failure {
    Failure {
        code,
        msg: msg.into(),
        details: details.to_string(),
    }
}

impl Invocation<'_> {
    fn variable(&self, name: &str) -> String {
        self.environment
            .get(name)
            .map(|value| value.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
