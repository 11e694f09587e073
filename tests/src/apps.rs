//! Real programs as pods: nginx, redis, PostgreSQL, and the clients that come with them.
//!
//! Each is started as a process of its pod from a configuration in the pod's folder, and counts as
//! started when it answers inside its own namespace, unmeshed.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    eventually::eventually,
    http,
    node::binary,
    pod::Pod,
    process::{Launch, Output, Process},
    world,
};

/// Time for a client program to do its work.
const LIMIT: Duration = Duration::from_secs(60);

/// Port of nginx.
pub const NGINX: u16 = 8080;
/// Port of redis.
pub const REDIS: u16 = 6379;
/// Port of PostgreSQL.
pub const POSTGRES: u16 = 5432;

/// Starts nginx. `/` answers with the pod's name, `/client-id` with the identity that the mesh
/// says the client has, `/peer` with the connection's addresses, `/echo?text` with the text.
///
/// # Errors
/// When it does not start.
pub fn nginx(pod: &Pod) -> Result<Process> {
    let name = &pod.spec().name;
    let folder = pod.folder().join("nginx");
    fs::create_dir_all(&folder)?;
    let v4 = pod.ips().iter().any(std::net::IpAddr::is_ipv4);
    let v6 = pod.ips().iter().any(std::net::IpAddr::is_ipv6);
    let listen = [(v4, format!("{NGINX}")), (v6, format!("[::]:{NGINX}"))];
    let listen: String = listen
        .iter()
        .filter(|(has, _)| *has)
        .map(|(_, address)| format!("listen {address} backlog=4096; "))
        .collect();
    let folder_text = folder.display();
    let config = format!(
        "worker_processes 1; pid {folder_text}/pid; error_log stderr warn; user root;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log off; keepalive_requests 1000000; default_type text/plain;\n\
           client_body_temp_path {folder_text}/body; proxy_temp_path {folder_text}/proxy;\n\
           fastcgi_temp_path {folder_text}/fastcgi; uwsgi_temp_path {folder_text}/uwsgi;\n\
           scgi_temp_path {folder_text}/scgi;\n\
           large_client_header_buffers 4 64k;\n\
           server {{\n\
             {listen}\n\
             root {folder_text}/files;\n\
             location = / {{ return 200 '{name}\\n'; }}\n\
             location = /client-id {{ return 200 '$http_l5d_client_id\\n'; }}\n\
             location = /peer {{ return 200 '$remote_addr:$remote_port $server_addr:$server_port\\n'; }}\n\
             location = /echo {{ return 200 '$args\\n'; }}\n\
             location = /fail {{ return 500 'as asked\\n'; }}\n\
           }}\n\
         }}\n"
    );
    fs::write(folder.join("nginx.conf"), config)?;
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files/1k"), "x".repeat(1024))?;
    let launch = pod
        .launch("nginx")
        .arg("-p")
        .arg(&folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"))
        .args(["-g", "daemon off;"]);
    let process = pod.spawn("nginx", launch)?;
    answering(pod, process, |pod| {
        let address = pod.at(NGINX);
        let reply = pod.netns().enter(|| http::get(address, "/"))??;
        ensure!(reply.body.trim() == pod.spec().name, "{reply:?}");
        Ok(())
    })
}

/// Starts redis, without persistence.
///
/// # Errors
/// When it does not start.
pub fn redis(pod: &Pod) -> Result<Process> {
    let launch = pod
        .launch("redis-server")
        .args(["--port", &REDIS.to_string(), "--bind", "*", "-::*"])
        .args(["--protected-mode", "no", "--save", "", "--dir"])
        .arg(pod.folder());
    let process = pod.spawn("redis", launch)?;
    answering(pod, process, |pod| {
        let reply = pod.run(&format!("redis-cli -h {} ping", pod.ip()))?;
        ensure!(reply.trim() == "PONG", "{reply}");
        Ok(())
    })
}

/// Starts PostgreSQL with a fresh cluster that lets everybody in.
///
/// # Errors
/// When it does not start.
pub fn postgres(pod: &Pod) -> Result<Process> {
    let programs = postgres_programs()?;
    let data = pod.folder().join("postgres");
    fs::create_dir_all(&data)?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
    let (uid, gid) = user_ids("postgres")?;
    chown(&data, Some(uid), Some(gid))?;
    Launch::new(programs.join("initdb"))
        .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"])
        .args(["--username=postgres", "-D"])
        .arg(&data)
        .user("postgres")
        .run()?;
    let access = "local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::0/0 trust\n";
    fs::write(data.join("pg_hba.conf"), access)?;
    let launch = pod
        .launch(programs.join("postgres"))
        .arg("-D")
        .arg(&data)
        .args(["-p", &POSTGRES.to_string(), "-h", "*", "-c", "fsync=off"])
        .args(["-c", "shared_buffers=16MB", "-k"])
        .arg(&data)
        .user("postgres");
    let process = pod.spawn("postgres", launch)?;
    answering(pod, process, |pod| {
        sql(pod, pod.at(POSTGRES), "select 1").map(drop)
    })
}

/// Starts a program of this workspace and waits for the line that it prints when it is ready.
///
/// # Errors
/// When it does not start.
pub fn own(pod: &Pod, program: &str, args: &[String]) -> Result<Process> {
    own_named(pod, program, program, args)
}

/// As [`own`], with a name for its log.
///
/// # Errors
/// As [`own`].
pub fn own_named(pod: &Pod, name: &str, program: &str, args: &[String]) -> Result<Process> {
    let launch = pod.launch(binary(&world::programs()?, program)?).args(args);
    let mut process = pod.spawn(name, launch)?;
    process.wait_for("\n")?;
    Ok(process)
}

/// Runs a program of this workspace to its end and gives what it printed.
///
/// # Errors
/// When it fails.
pub fn run_own(pod: &Pod, program: &str, args: &[&str]) -> Result<Output> {
    let launch = pod.launch(binary(&world::programs()?, program)?).args(args);
    launch.output(LIMIT)
}

/// Asks with curl; gives status and body.
///
/// # Errors
/// When curl gets no answer.
pub fn curl(pod: &Pod, url: &str, args: &[&str]) -> Result<(u16, String)> {
    let launch = pod
        .launch("curl")
        .args(["--silent", "--show-error", "--max-time", "20"])
        .args(["--write-out", "\n%{http_code}"])
        .args(args)
        .arg(url);
    let output = launch.output(LIMIT)?;
    ensure!(
        output.status.success(),
        "curl {url}: {}",
        output.stderr.trim()
    );
    let (body, status) = output.stdout.rsplit_once('\n').context("no status")?;
    Ok((status.trim().parse()?, body.to_owned()))
}

/// Runs one SQL text with psql; gives the bare result.
///
/// # Errors
/// When the server refuses.
pub fn sql(pod: &Pod, server: SocketAddr, text: &str) -> Result<String> {
    let host = server.ip().to_string();
    let port = server.port().to_string();
    let launch = pod
        .launch("psql")
        .args(["-h", &host, "-p", &port, "-U", "postgres", "-X", "-A", "-t"])
        .args(["-v", "ON_ERROR_STOP=1", "-c", text])
        .env("PGCONNECT_TIMEOUT", "15");
    launch.run()
}

/// Runs a command of redis-cli.
///
/// # Errors
/// When the server does not answer.
pub fn redis_cli(pod: &Pod, server: SocketAddr, args: &[&str]) -> Result<String> {
    let launch = pod
        .launch("redis-cli")
        .args([
            "-h",
            &server.ip().to_string(),
            "-p",
            &server.port().to_string(),
        ])
        .args(args);
    Ok(launch.run()?.trim().to_owned())
}

/// What wrk measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrk {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// Lines about errors: none if all went well.
    pub errors: Vec<String>,
}

/// Runs wrk for some seconds.
///
/// # Errors
/// When it fails or prints something unknown.
pub fn wrk(pod: &Pod, url: &str, connections: u32, seconds: u32) -> Result<Wrk> {
    let line = format!("wrk -t1 -c{connections} -d{seconds}s --timeout 10s {url}");
    let limit = LIMIT + Duration::from_secs(seconds.into());
    let output = pod.output(&line, limit)?;
    ensure!(output.status.success(), "{line}: {}", output.stderr);
    parse_wrk(&output.stdout)
}

fn parse_wrk(text: &str) -> Result<Wrk> {
    let word_before = |mark: &str| {
        let line = text.lines().find(|line| line.contains(mark))?;
        line.split_whitespace().next()
    };
    let requests = word_before(" requests in ").context("wrk: no requests")?;
    let rate = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let errors = text.lines().map(str::trim);
    Ok(Wrk {
        requests: requests.parse()?,
        rate: rate.context("wrk: no rate")?.trim().parse()?,
        errors: errors
            .filter(|line| line.starts_with("Socket errors") || line.starts_with("Non-2xx"))
            .map(str::to_owned)
            .collect(),
    })
}

fn answering(
    pod: &Pod,
    mut process: Process,
    check: impl Fn(&Pod) -> Result<()>,
) -> Result<Process> {
    let up = eventually(&format!("{} answers", process.name()), || {
        if !process.is_running() {
            return Ok(false);
        }
        check(pod).map(|()| true)
    });
    match up {
        Ok(true) => Ok(process),
        Ok(false) => bail!("{} ended at start: {}", process.name(), process.tail(10)),
        Err(error) => Err(error.context(process.tail(10))),
    }
}

/// Where Debian keeps the server programs of the newest PostgreSQL.
fn postgres_programs() -> Result<PathBuf> {
    let root = Path::new("/usr/lib/postgresql");
    let entries = fs::read_dir(root).with_context(|| format!("no {}", root.display()))?;
    let newest = entries
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|programs| programs.join("postgres").exists())
        .max();
    newest.context("PostgreSQL is not installed: cargo xtask setup")
}

fn user_ids(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    users
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, fields.next()?.parse().ok()?))
        })
        .with_context(|| format!("no user {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_output_is_read() {
        let text = "Running 1s test @ http://10.77.1.2:8080/\n  1 threads and 2 connections\n\
            \x20 9000 requests in 1.00s, 1.61MB read\n\
            \x20 Socket errors: connect 0, read 0, write 0, timeout 3\n\
            \x20 Non-2xx or 3xx responses: 7\n\
            Requests/sec:   8999.50\nTransfer/sec:      1.61MB\n";
        let expected = Wrk {
            requests: 9000,
            rate: 8999.5,
            errors: vec![
                "Socket errors: connect 0, read 0, write 0, timeout 3".to_owned(),
                "Non-2xx or 3xx responses: 7".to_owned(),
            ],
        };
        assert_eq!(parse_wrk(text).unwrap(), expected);
        assert!(parse_wrk("unable to connect").is_err());
    }
}
