//! Runs programs, showing what is run; bounded in time where it matters.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// Root of the workspace.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Shows and runs a command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let status = command.status().with_context(|| format!("run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a command and gives what it printed; nothing if it cannot be run or fails.
pub(crate) fn ask(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// Shows and runs a command, passing its standard output on line by line to the terminal and to
/// `line`. Kills it with its children when `limit` has passed.
pub(crate) fn run_lines(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let child = command.stdout(Stdio::piped()).process_group(0).spawn();
    let mut child = child.with_context(|| format!("run {shown}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let watch = Watchdog::start(&child, limit);
    for text in BufReader::new(stdout).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).into_owned();
        println!("{text}");
        line(&text);
    }
    let status = child.wait()?;
    if watch.stop() {
        bail!("{shown}: killed after {limit:?}");
    }
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Kills a process group when its time is over.
struct Watchdog {
    ended: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(child: &Child, limit: Duration) -> Self {
        let group = format!("-{}", child.id());
        let (ended, end) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let is_late = end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if is_late {
                ask("kill", &["-KILL", "--", &group]);
            }
            is_late
        });
        Self { ended, thread }
    }

    /// Whether it had to kill.
    fn stop(self) -> bool {
        drop(self.ended);
        self.thread.join().unwrap_or(false)
    }
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(OsStr::new("?"));
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    ask("id", &["-u"]).is_some_and(|uid| uid.trim() == "0")
}

/// Whether a program is on the path, in cargo's own folder, or where only root looks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let folders = env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .chain(more);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
