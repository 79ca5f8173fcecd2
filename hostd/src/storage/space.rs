//! How much may still be promised on the data file system.
//!
//! Volumes are sparse, but their whole size is promised: what guests have not written yet is kept free for them, and a
//! reserve is kept for the host. So a guest never meets a full disk that its owner could not have seen coming.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Kept free for the host itself: at least this many bytes.
const RESERVE_MIN_BYTES: u64 = 128 << 20;
/// And one part in this many of the file system.
const RESERVE_SHARE: u64 = 50;

/// What the data file system has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub size_bytes: u64,
    /// Free on it.
    pub free_bytes: u64,
    /// Free, but promised to volumes that have not written it yet.
    pub promised_bytes: u64,
}

impl Space {
    /// What is left for a new volume or upload.
    pub fn left(&self) -> u64 {
        let reserve = RESERVE_MIN_BYTES.max(self.size_bytes / RESERVE_SHARE);
        self.free_bytes
            .saturating_sub(self.promised_bytes)
            .saturating_sub(reserve)
    }

    /// Of the file system that holds `volumes`.
    ///
    /// # Errors
    /// What the file system said.
    pub fn of(volumes: &Path) -> io::Result<Self> {
        let fs = rustix::fs::statvfs(volumes)?;
        let mut promised = 0_u64;
        for entry in fs::read_dir(volumes)? {
            let metadata = match entry?.metadata() {
                Ok(metadata) => metadata,
                // Removed between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_file() {
                promised += metadata.len().saturating_sub(metadata.blocks() * 512);
            }
        }
        Ok(Self {
            size_bytes: fs.f_blocks * fs.f_frsize,
            free_bytes: fs.f_bavail * fs.f_frsize,
            promised_bytes: promised,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_and_a_reserve_are_not_given_twice() {
        let gib = 1 << 30;
        let space = Space {
            size_bytes: 10 * gib,
            free_bytes: 5 * gib,
            promised_bytes: 3 * gib,
        };
        assert_eq!(space.left(), 2 * gib - 10 * gib / 50);
        let full = Space {
            size_bytes: gib,
            free_bytes: 100,
            promised_bytes: gib,
        };
        assert_eq!(full.left(), 0);
    }

    #[test]
    fn a_sparse_file_is_promised_in_full() {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("v")).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(Space::of(folder.path()).unwrap().promised_bytes, 1 << 20);
    }
}
