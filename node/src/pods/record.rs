//! What is remembered about pods on disk, `RUN_DIR/pods/<uid>.json`: the sandbox that CNI told us,
//! and what enrolment made, for adoption after a restart of this daemon.
//!
//! A record is written before the kernel is touched and deleted after the kernel is clean, so that
//! nothing is ever left behind that nobody knows of.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{netns::NetnsId, sockets::Kind};

/// A pod's sandbox, as the container runtime set it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The pod's uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The runtime's id of the sandbox. A pod whose sandbox is made anew gets another one.
    pub container_id: String,
    /// Interface that the runtime asked for.
    pub ifname: String,
    /// Where the network namespace is.
    pub netns: PathBuf,
    /// Which namespace that is.
    pub netns_id: NetnsId,
    /// Addresses that the previous plugin reported.
    pub ips: Vec<IpAddr>,
    /// The pod's cgroup, if the runtime says it.
    pub cgroup: Option<PathBuf>,
}

/// What enrolment made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Cookie of the network namespace.
    pub cookie: u64,
    /// Slot of the listeners.
    pub slot: u32,
    /// Cookies of the listeners: only these sockets are taken back from an agent.
    pub listeners: BTreeMap<Kind, u64>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What is or was being made for it; absent for a pod that is not meshed.
    pub made: Option<Made>,
    /// The controller's record of the pod when it was enrolled: a `weft.node.v1.Pod`, as base64.
    #[serde(default)]
    pub pod: Option<String>,
}

/// Why a record cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("write {path:?}")]
pub struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// The folder of records.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens the folder below the run directory, making it if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self, RecordError> {
        let folder = run_dir.join("pods");
        match fs::create_dir_all(&folder) {
            Ok(()) => Ok(Self { folder }),
            Err(source) => Err(RecordError {
                path: folder,
                source,
            }),
        }
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.sandbox.uid);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other);
        text.and_then(|text| write_whole(&path, &text))
            .map_err(|source| RecordError { path, source })
    }

    /// Deletes a record; one that is not there is no error.
    pub fn forget(&self, uid: &str) {
        let path = self.path(uid);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(%error, path = %path.display(), "pod record cannot be deleted");
        }
    }

    /// Reads all records. Files that do not parse are reported and left.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let record = fs::read(&path)
                .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other));
            match record {
                Ok(record) => records.push(record),
                Err(error) => {
                    warn!(%error, path = %path.display(), "pod record is unreadable; ignored");
                }
            }
        }
        Ok(records)
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.folder.join(format!("{uid}.json"))
    }
}

/// Writes a file that only its owner reads, so that a crash leaves the old or the new one.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&aside, path)
}

/// Whether a uid can name a file and a pin.
pub fn is_valid_uid(uid: &str) -> bool {
    (1..=64).contains(&uid.len())
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sandbox(uid: &str) -> Sandbox {
        Sandbox {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
            container_id: format!("container-{uid}"),
            ifname: "eth0".to_owned(),
            netns: "/dev/null".into(),
            netns_id: NetnsId::of_path(Path::new("/dev/null")).unwrap(),
            ips: vec!["10.0.0.1".parse().unwrap()],
            cgroup: None,
        }
    }

    #[test]
    fn records_survive_and_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        let record = Record {
            sandbox: sandbox("u1"),
            made: Some(Made {
                cookie: 7,
                slot: 0,
                listeners: BTreeMap::from([(Kind::OutboundV4, 3)]),
            }),
            pod: None,
        };
        records.keep(&record).unwrap();
        fs::write(folder.path().join("pods/broken.json"), "{").unwrap();
        assert_eq!(records.load().unwrap(), [record]);
        records.forget("u1");
        records.forget("u1");
        assert_eq!(records.load().unwrap(), []);
    }

    #[test]
    fn uids_cannot_climb_out_of_the_folder() {
        for (uid, expected) in [
            ("6f1c1f5a-0000-4000-8000-000000000001", true),
            ("../x", false),
            ("", false),
            ("a.b", false),
        ] {
            assert_eq!(is_valid_uid(uid), expected, "{uid:?}");
        }
    }
}
