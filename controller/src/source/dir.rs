//! A folder of manifests, read recursively and followed live.
//!
//! Every scan reads every file, compares its contents with those of the last scan, and parses
//! what has changed. What a broken file used to define stays until the file is whole again or is
//! deleted, and so does everything while the folder itself is away. If two files define an
//! object, the file whose name sorts first wins.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use aws_lc_rs::digest;
use notify::RecursiveMode;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use walkdir::{DirEntry, WalkDir};
use weft_runtime::ready::Pending;

use super::parse::{self, Finding, Parsed};
use crate::{
    fswatch::{FsWatch, Timing},
    index::{Object, ObjectKey, ObjectProblem},
    problems::{Problem, Problems, Severity},
    serve::Hub,
};

/// A folder of manifests and what was read from it.
#[derive(Debug)]
pub struct Dir {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    applied: BTreeMap<ObjectKey, Defined>,
}

/// What follows from a scan.
#[derive(Debug, Default)]
pub struct Scanned {
    /// What is to be done with the index, in this order.
    pub changes: Vec<Change>,
    /// What is wrong with the files.
    pub problems: Vec<Problem>,
    /// Whether the folder itself could be read.
    pub is_complete: bool,
}

/// A change of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is new or different.
    Apply(ObjectKey, Arc<Object>),
    /// It is gone.
    Delete(ObjectKey),
}

#[derive(Debug, Default)]
struct File {
    hash: Vec<u8>,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug)]
struct Defined {
    file: PathBuf,
    object: Arc<Object>,
}

/// Manifests are small; this is somebody's mistake.
const MAX_FILE: u64 = 16 * 1024 * 1024;
const MAX_DEPTH: usize = 32;

impl Dir {
    /// Names a folder. Nothing is read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            files: BTreeMap::new(),
            applied: BTreeMap::new(),
        }
    }

    /// Reads all files and says what has changed since the last scan.
    pub fn scan(&mut self) -> Scanned {
        let mut scanned = Scanned::default();
        match fs::read_dir(&self.root) {
            Ok(_) => {
                scanned.is_complete = true;
                self.read_files(&mut scanned.problems);
            }
            Err(error) => scanned.problems.push(Problem {
                file: Some(self.root.clone()),
                at: None,
                severity: Severity::Error,
                object: None,
                message: format!("the folder cannot be read ({error}); what was read stays"),
            }),
        }
        for (path, file) in &self.files {
            let problem = |finding: &Finding| Problem {
                file: Some(path.clone()),
                at: finding.at,
                severity: finding.severity,
                object: finding.object.clone(),
                message: finding.message.clone(),
            };
            scanned.problems.extend(file.findings.iter().map(problem));
        }
        let next = self.merge(&mut scanned.problems);
        scanned.changes = differences(&self.applied, &next);
        self.applied = next;
        scanned
    }

    /// Names the file of an object that has a problem.
    pub fn locate(&self, problem: ObjectProblem) -> Problem {
        let defined = self.applied.get(&problem.object);
        Problem {
            file: defined.map(|defined| defined.file.clone()),
            at: None,
            severity: Severity::Warning,
            object: Some(problem.object.to_string()),
            message: problem.message,
        }
    }

    fn read_files(&mut self, problems: &mut Vec<Problem>) {
        let mut previous = std::mem::take(&mut self.files);
        let walk = WalkDir::new(&self.root)
            .follow_links(true)
            .max_depth(MAX_DEPTH)
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry));
        for entry in walk {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    // What lies below is unknown, so nothing of it may go.
                    if let Some(path) = error.path() {
                        let kept = previous.extract_if(.., |file, _| file.starts_with(path));
                        self.files.extend(kept);
                    }
                    problems.push(Problem {
                        file: error.path().map(Path::to_path_buf),
                        at: None,
                        severity: Severity::Error,
                        object: None,
                        message: format!("cannot be read: {error}"),
                    });
                    continue;
                }
            };
            if entry.file_type().is_file() && is_manifest(entry.path()) {
                let last = previous.remove(entry.path()).unwrap_or_default();
                let path = entry.into_path();
                let file = last.read_again(&path);
                self.files.insert(path, file);
            }
        }
    }

    fn merge(&self, problems: &mut Vec<Problem>) -> BTreeMap<ObjectKey, Defined> {
        let mut merged: BTreeMap<ObjectKey, Defined> = BTreeMap::new();
        for (path, file) in &self.files {
            for (key, object) in &file.objects {
                if let Some(first) = merged.get(key) {
                    problems.push(Problem {
                        file: Some(path.clone()),
                        at: None,
                        severity: Severity::Error,
                        object: Some(key.to_string()),
                        message: format!("is defined in {} already", first.file.display()),
                    });
                    continue;
                }
                let defined = Defined {
                    file: path.clone(),
                    object: Arc::clone(object),
                };
                merged.insert(key.clone(), defined);
            }
        }
        merged
    }
}

impl File {
    fn read_again(self, path: &Path) -> Self {
        let bytes = match read_bounded(path) {
            Ok(bytes) => bytes,
            Err(error) => return self.broken(format!("cannot be read: {error}")),
        };
        let hash = digest::digest(&digest::SHA256, &bytes).as_ref().to_vec();
        if hash == self.hash {
            return self;
        }
        // A file that is being rewritten in place is empty for a moment.
        if bytes.is_empty() && !self.objects.is_empty() {
            return self.broken("is empty; delete it to remove what it defined".to_owned());
        }
        debug!(file = %path.display(), "manifest read");
        let parsed = parse::parse(&bytes);
        self.replaced(hash, parsed)
    }

    fn broken(mut self, message: String) -> Self {
        self.findings = vec![Finding::new(Severity::Error, None, message)];
        self.hash.clear();
        self
    }

    /// Takes the new contents; what a broken file no longer defines stays.
    fn replaced(self, hash: Vec<u8>, mut parsed: Parsed) -> Self {
        let is_broken = parsed.is_broken();
        let mut objects = BTreeMap::new();
        for (key, object) in parsed.objects {
            if objects.contains_key(&key) {
                let message = "is defined twice in this file; the first one counts";
                let mut finding = Finding::new(Severity::Error, None, message);
                finding.object = Some(key.to_string());
                parsed.findings.push(finding);
                continue;
            }
            // The same object keeps its place in memory, so that comparing is cheap.
            let known = self.objects.get(&key).filter(|known| ***known == object);
            let object = known.map_or_else(|| Arc::new(object), Arc::clone);
            objects.insert(key, object);
        }
        if is_broken {
            for (key, object) in self.objects {
                objects.entry(key).or_insert(object);
            }
        }
        Self {
            hash,
            objects,
            findings: parsed.findings,
        }
    }
}

/// Follows a folder until stopped: reads it, publishes to the hub, waits for a change.
///
/// # Errors
/// When a scan panics.
pub async fn run(
    mut dir: Dir,
    hub: Arc<Hub>,
    problems: Problems,
    timing: Timing,
    first: Pending,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let root = dir.root.clone();
    let start_watch = || {
        FsWatch::new(
            std::slice::from_ref(&root),
            RecursiveMode::Recursive,
            timing,
        )
    };
    let mut watch = start_watch();
    let mut was_complete = true;
    let mut first = Some(first);
    loop {
        let scan = tokio::task::spawn_blocking(move || {
            let scanned = dir.scan();
            (dir, scanned)
        });
        let (back, scanned) = scan.await.context("read manifests")?;
        dir = back;
        let changes = scanned.changes.len();
        // A folder that is not there yet is no empty cluster: nodes would let go of their pods.
        let is_known = first.is_none() || scanned.is_complete;
        let found = match is_known {
            true => hub.update(scanned.changes),
            false => Vec::new(),
        };
        let located = found.into_iter().map(|problem| dir.locate(problem));
        problems.replace(scanned.problems.into_iter().chain(located));
        if is_known && first.take().is_some() {
            info!(objects = dir.applied.len(), folder = %dir.root.display(), "manifests read");
        } else if changes > 0 {
            info!(changes, "manifests changed");
        }
        if scanned.is_complete && !was_complete {
            // A watch does not survive its folder. What changed since the scan is read again.
            watch = start_watch();
            was_complete = true;
            continue;
        }
        was_complete = scanned.is_complete;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = watch.next() => {}
        }
    }
}

fn differences(
    old: &BTreeMap<ObjectKey, Defined>,
    new: &BTreeMap<ObjectKey, Defined>,
) -> Vec<Change> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let gone = gone.map(|key| Change::Delete(key.clone()));
    let applied = new.iter().filter(|(key, defined)| {
        let known = old.get(key);
        known.is_none_or(|known| !Arc::ptr_eq(&known.object, &defined.object))
    });
    gone.chain(
        applied.map(|(key, defined)| Change::Apply(key.clone(), Arc::clone(&defined.object))),
    )
    .collect()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{size} bytes are more than {MAX_FILE}"),
        ));
    }
    fs::read(path)
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Editors' swap files, and the generations behind the links of a mounted ConfigMap.
fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}
