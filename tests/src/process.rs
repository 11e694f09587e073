//! Child processes: in which namespace and cgroup they start, where their output goes, how they end.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    eventually::{PATIENCE, eventually_within},
    netns::Netns,
};

/// A command that is about to start.
#[derive(Debug, Default)]
pub struct Launch {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    netns: Option<Netns>,
    cgroup: Option<PathBuf>,
    user: Option<String>,
    stdin: Option<Vec<u8>>,
    keep_stdin: bool,
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A running child. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Launch {
    /// Starts describing a command.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            ..Self::default()
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Starts it in a network namespace.
    #[must_use]
    pub fn netns(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// Starts it in a cgroup.
    #[must_use]
    pub fn cgroup(mut self, cgroup: &Path) -> Self {
        self.cgroup = Some(cgroup.to_owned());
        self
    }

    /// Starts it as this user (name or number), without any capability.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Gives it these bytes on standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// Keeps its standard input open until [`Process::close_stdin`].
    #[must_use]
    pub const fn keep_stdin(mut self) -> Self {
        self.keep_stdin = true;
        self
    }

    /// Runs it to its end and gives what it printed.
    ///
    /// # Errors
    /// When it cannot start, takes longer than [`PATIENCE`] or fails.
    pub fn run(self) -> Result<String> {
        let shown = self.shown();
        let output = self.output(PATIENCE)?;
        ensure!(
            output.status.success(),
            "{shown}: {}: {}{}",
            output.status,
            output.stderr.trim(),
            output.stdout.trim(),
        );
        Ok(output.stdout)
    }

    /// Runs it to its end, however it ends.
    ///
    /// # Errors
    /// When it cannot start or takes longer than `limit`; it is killed then.
    pub fn output(mut self, limit: Duration) -> Result<Output> {
        let shown = self.shown();
        let input = self.stdin.take();
        let mut command = self.command()?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A program that does not read its input is judged by how it ends.
            stdin.write_all(&input).ok();
        }
        let stdout = child.stdout.take().map(read_aside);
        let stderr = child.stderr.take().map(read_aside);
        let status = wait(&mut child, limit);
        if status.is_err() {
            child.kill().ok();
            child.wait().ok();
        }
        let text = |reader: Option<std::thread::JoinHandle<String>>| {
            reader
                .and_then(|reader| reader.join().ok())
                .unwrap_or_default()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        Ok(Output {
            status: status.with_context(|| format!("{shown}: {stdout}{stderr}"))?,
            stdout,
            stderr,
        })
    }

    /// Starts it and leaves it running, output and errors going to `LOGS/NAME.log`.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn spawn(self, name: &str, logs: &Path) -> Result<Process> {
        let shown = self.shown();
        let keep_stdin = self.keep_stdin;
        fs::create_dir_all(logs).with_context(|| format!("create {}", logs.display()))?;
        let log = logs.join(format!("{name}.log"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut command = self.command()?;
        command
            .stdin(if keep_stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command.spawn().with_context(|| format!("start {shown}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
        })
    }

    fn shown(&self) -> String {
        let mut text = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            text.push(' ');
            text.push_str(&arg.to_string_lossy());
        }
        text
    }

    fn command(&self) -> Result<Command> {
        let mut command = match &self.user {
            None => Command::new(&self.program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid", user, "--regid", user, "--clear-groups"])
                    .args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
                    .arg("--")
                    .arg(&self.program);
                command
            }
        };
        command.args(&self.args).process_group(0);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        let cgroup = self.cgroup.as_deref().map(open_cgroup).transpose()?;
        let netns = self.netns.as_ref().map(Netns::open).transpose()?;
        place(&mut command, cgroup, netns.map(OwnedFd::from));
        Ok(command)
    }
}

/// Puts the child into its cgroup and namespace between fork and exec, so that not one
/// instruction of the program runs elsewhere.
fn place(command: &mut Command, cgroup: Option<File>, netns: Option<OwnedFd>) {
    let enter = move || {
        if let Some(cgroup) = &cgroup {
            // "0" is the writer itself.
            rustix::io::write(cgroup, b"0")?;
        }
        if let Some(netns) = &netns {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and only makes the system calls write and
    // setns on descriptors opened before; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(enter);
    }
}

fn open_cgroup(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .open(path.join("cgroup.procs"))
        .with_context(|| format!("open cgroup {}", path.display()))
}

fn read_aside(mut source: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    eventually_within(limit, "process ended", || match child.try_wait()? {
        Some(status) => Ok(status),
        None => bail!("pid {} still runs", child.id()),
    })
}

impl Process {
    /// The name its log has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            file.read_to_end(&mut text).ok();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it ends before, or does not print it in time.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let what = format!("{} printed {text:?}", self.name);
        let (name, log) = (self.name.clone(), self.log.clone());
        let mut ended = None;
        let found = eventually_within(PATIENCE, &what, || {
            if fs::read_to_string(&log)?.contains(text) {
                return Ok(true);
            }
            ended = self.child.try_wait()?;
            match ended {
                Some(_) => Ok(false),
                None => bail!("{name} has not"),
            }
        });
        match found {
            Ok(true) => Ok(()),
            Ok(false) => bail!("{name} ended ({ended:?}): {}", self.tail(20)),
            Err(error) => Err(error.context(self.tail(20))),
        }
    }

    /// The last lines of its log.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When that is closed.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| self.name.clone())
    }

    /// Writes a last line to its standard input, ends that, and waits for the end of the process.
    ///
    /// # Errors
    /// When it does not end.
    pub fn close_stdin_with(&mut self, line: &str) -> Result<()> {
        // It may have ended before, when its connection was refused.
        self.write_line(line).ok();
        self.close_stdin();
        self.wait(PATIENCE).map(drop)
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("pid is not positive")?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, limit).with_context(|| self.name.clone())
    }

    /// Kills it as a crash would: no handler runs.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Asks it to end, and kills it if it does not within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> bool {
        let orderly = self.signal(Signal::TERM).is_ok() && self.wait(limit).is_ok();
        if !orderly {
            self.kill();
        }
        orderly
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
