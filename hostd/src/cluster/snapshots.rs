//! The one snapshot of this host, in a file that is there as a whole or not at all.
//!
//! ```text
//! <membership and last entry, as in `encoding`>\n<the state, as in `hostd_state::snapshot`>
//! ```
//!
//! Written under another name, fsync'ed, renamed, and its directory fsync'ed, all before the log below it is purged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::encoding::{self, DecodeError};
use super::types::SnapshotMeta;

/// Why there is no snapshot to be had.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The file.
    #[error("could not access the snapshot `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its head.
    #[error("the snapshot `{path}` is damaged: {why}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It could not be made.
    #[error("the snapshot could not be encoded: {0}")]
    Encode(String),
}

/// Where the snapshot lies.
#[derive(Debug, Clone)]
pub(super) struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    /// In this directory. What was half written is removed.
    pub(super) fn open(dir: &Path) -> Result<Self, SnapshotFileError> {
        let snapshots = Self {
            dir: dir.to_owned(),
        };
        let half = snapshots.half();
        match fs::remove_file(&half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SnapshotFileError::File {
                path: half,
                source: error,
            }),
            _ => Ok(snapshots),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("snapshot")
    }

    fn half(&self) -> PathBuf {
        self.dir.join("snapshot.new")
    }

    /// Replaces the snapshot. When it returns, the new one survives a power cut; when it fails, the old one is there.
    pub(super) fn save(&self, meta: &SnapshotMeta, state: &[u8]) -> Result<(), SnapshotFileError> {
        let head = encoding::snapshot_meta_encode(meta);
        let mut head = head.map_err(|error| SnapshotFileError::Encode(error.to_string()))?;
        head.extend_from_slice(format!("\n{}\n", checksum(&head)).as_bytes());
        let half = self.half();
        let write = || -> io::Result<()> {
            let mut file = File::create(&half)?;
            file.write_all(&head)?;
            file.write_all(state)?;
            file.sync_all()?;
            fs::rename(&half, self.path())?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| SnapshotFileError::File {
            path: half.clone(),
            source,
        })
    }

    /// The snapshot, if there is one.
    pub(super) fn load(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, SnapshotFileError> {
        let path = self.path();
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SnapshotFileError::File { path, source }),
        };
        let damaged = |why: &str| SnapshotFileError::Damaged {
            path: path.clone(),
            why: why.to_owned(),
        };
        let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
        let (Some(head), Some(sum), Some(state)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(damaged("it ends too early"));
        };
        if sum != checksum(head).as_bytes() {
            return Err(damaged("the checksum of its head does not fit"));
        }
        let meta = encoding::snapshot_meta_decode(head);
        let meta = meta.map_err(|error: DecodeError| damaged(&error.to_string()))?;
        let at = bytes.len() - state.len();
        let state = bytes.split_off(at);
        Ok(Some((meta, state)))
    }
}

fn checksum(head: &[u8]) -> String {
    Sha256::digest(head)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
