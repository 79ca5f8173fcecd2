//! Writing files to a FAT32 file system that `mkfs.vfat` has just made.
//!
//! Not by mounting it, because the order of writes is the point: a file's bytes, then its chain in both tables, then,
//! in one sector, the directory entry that makes it exist, each on the medium before the next. So a power cut leaves
//! a file there whole or not there. Only what an installer needs: new files and directories.
//!
//! ```text
//! create ─ data ─ sync ─ tables, FSInfo ─ sync ─ directory entry ─ sync
//! ```

use std::io;

use super::disk::Disk;
use super::fat::{Entry, Fat, FatError, Layout, Width, short_checksum};
use crate::host::read_at::{ReadAt, Window};

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EspError {
    /// It is no FAT32 file system of ours.
    #[error(transparent)]
    Fat(#[from] FatError),
    /// It must be FAT32.
    #[error("the ESP is not FAT32")]
    NotFat32,
    /// There is one already.
    #[error("`{0}` exists already")]
    Exists(String),
    /// The folder is not there.
    #[error("the folder of `{0}` does not exist")]
    NoFolder(String),
    /// No clusters are free.
    #[error("the ESP is full")]
    Full,
    /// A directory's cluster has no room.
    #[error("the folder of `{0}` is full")]
    FolderFull(String),
    /// Reading the source or writing failed.
    #[error("could not write `{0}`")]
    Write(String, #[source] io::Error),
}

/// An ESP being filled.
pub struct Esp<'a> {
    disk: &'a dyn Disk,
    start: u64,
    len: u64,
    layout: Layout,
    table: Vec<u8>,
    /// Where the search for free clusters goes on.
    next: u32,
}

/// How much is copied at once.
const CHUNK: usize = 4 << 20;

impl<'a> Esp<'a> {
    /// Opens the file system in this stretch of the disk.
    pub fn open(disk: &'a dyn Disk, start: u64, len: u64) -> Result<Self, EspError> {
        let window = Window::new(disk_as_read(disk), start, len);
        let fat = Fat::open(&window)?;
        if fat.layout().width != Width::ThirtyTwo {
            return Err(EspError::NotFat32);
        }
        Ok(Self {
            disk,
            start,
            len,
            layout: fat.layout().clone(),
            table: fat.table().to_vec(),
            next: 2,
        })
    }

    /// Makes a folder; its parent exists.
    pub fn mkdir(&mut self, path: &str) -> Result<(), EspError> {
        let parent = self.parent_of(path)?;
        let cluster = self.allocate(1)?;
        let first = cluster.first().copied().ok_or(EspError::Full)?;
        let mut bytes = vec![0; self.cluster_len(path)?];
        bytes[..32].copy_from_slice(&raw_entry(b".          ", 0x10, first, 0));
        // The root's number in `..` is 0 (section 6.5).
        let up = match parent {
            root if root == self.layout.root_cluster => 0,
            other => other,
        };
        bytes[32..64].copy_from_slice(&raw_entry(b"..         ", 0x10, up, 0));
        let failed = |source| EspError::Write(path.to_owned(), source);
        self.put(self.offset(first), &bytes).map_err(failed)?;
        self.write_tables().map_err(failed)?;
        self.link(path, parent, 0x10, first, 0)
    }

    /// Makes a file with these bytes. `progress` hears how many are written.
    pub fn create(
        &mut self,
        path: &str,
        source: &dyn ReadAt,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), EspError> {
        let failed = |source| EspError::Write(path.to_owned(), source);
        let parent = self.parent_of(path)?;
        let count = source.len().div_ceil(self.layout.cluster);
        let len = u32::try_from(source.len()).map_err(|_| EspError::Full)?;
        let clusters = self.allocate(count)?;
        let mut at = 0;
        let per_cluster = self.layout.cluster;
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            let Some(first) = run.first() else { continue };
            let offset = self.offset(*first);
            let run_len = (run.len() as u64 * per_cluster).min(source.len() - at);
            let mut done = 0;
            while done < run_len {
                let take = usize::try_from(run_len - done).unwrap_or(CHUNK).min(CHUNK);
                let bytes = source.read_vec(at + done, take).map_err(failed)?;
                self.put(offset + done, &bytes).map_err(failed)?;
                done += take as u64;
                progress(at + done);
            }
            at += run_len;
        }
        self.disk.sync().map_err(failed)?;
        self.write_tables().map_err(failed)?;
        let first = clusters.first().copied().unwrap_or(0);
        self.link(path, parent, 0x20, first, len)
    }

    /// Writes the directory entry: from here on it exists.
    fn link(
        &mut self,
        path: &str,
        parent: u32,
        attribute: u8,
        first: u32,
        len: u32,
    ) -> Result<(), EspError> {
        let failed = |source| EspError::Write(path.to_owned(), source);
        let name = path.rsplit('/').next().unwrap_or(path);
        let offset = self.offset(parent);
        let cluster = self.cluster_len(path)?;
        let folder = self.get(offset, cluster).map_err(failed)?;
        let taken: Vec<&[u8]> = folder
            .chunks_exact(32)
            .take_while(|raw| raw[0] != 0)
            .collect();
        let entries = entries_for(name, &taken, attribute, first, len);
        let used = taken.len() * 32;
        // One entry has to stay zero as the end mark.
        if used + entries.len() + 32 > cluster {
            return Err(EspError::FolderFull(path.to_owned()));
        }
        // In one write when it fits one sector; else the long name's parts go first: without the short entry after
        // them they are ignored.
        let sector = usize::try_from(self.layout.sector).unwrap_or(512);
        let short_at = used + entries.len() - 32;
        let split = (short_at - short_at % sector).max(used) - used;
        if split > 0 {
            let last = self
                .get(offset + (used + split) as u64, 32)
                .map_err(failed)?;
            debug_assert!(last.iter().all(|byte| *byte == 0));
            self.put(offset + used as u64, &entries[..split])
                .map_err(failed)?;
            self.disk.sync().map_err(failed)?;
        }
        self.put(offset + (used + split) as u64, &entries[split..])
            .map_err(failed)?;
        self.disk.sync().map_err(failed)
    }

    fn parent_of(&self, path: &str) -> Result<u32, EspError> {
        let window = Window::new(disk_as_read(self.disk), self.start, self.len);
        let fat = Fat::open(&window)?;
        if fat.find(path)?.is_some() {
            return Err(EspError::Exists(path.to_owned()));
        }
        let Some((folder, _)) = path.rsplit_once('/') else {
            return Ok(self.layout.root_cluster);
        };
        match fat.find(folder)? {
            Some(Entry {
                is_dir: true,
                first,
                ..
            }) if first >= 2 => Ok(first),
            _ => Err(EspError::NoFolder(path.to_owned())),
        }
    }

    /// Takes free clusters and chains them, in memory.
    fn allocate(&mut self, count: u64) -> Result<Vec<u32>, EspError> {
        let mut found = Vec::new();
        let mut at = self.next;
        while (found.len() as u64) < count {
            if at - 2 >= self.layout.clusters {
                return Err(EspError::Full);
            }
            if self.entry(at) == Some(0) {
                found.push(at);
            }
            at += 1;
        }
        for (index, cluster) in found.iter().enumerate() {
            let next = found.get(index + 1).copied().unwrap_or(0x0fff_ffff);
            let place = *cluster as usize * 4;
            self.table[place..place + 4].copy_from_slice(&next.to_le_bytes());
        }
        self.next = at;
        Ok(found)
    }

    fn entry(&self, cluster: u32) -> Option<u32> {
        let place = cluster as usize * 4;
        let raw: [u8; 4] = self.table.get(place..place + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(raw) & 0x0fff_ffff)
    }

    fn write_tables(&self) -> io::Result<()> {
        for copy in 0..self.layout.tables {
            let at = self.layout.table + copy * self.layout.table_len;
            self.put(at, &self.table)?;
        }
        // FSInfo (section 4): how many are free, and where to look next.
        let mut info = self.get(self.layout.info, 512)?;
        if info[..4] == *b"RRaA" && info[484..488] == *b"rrAa" {
            let last = self.layout.clusters + 2;
            let free = (2..last).filter(|c| self.entry(*c) == Some(0)).count();
            let free = u32::try_from(free).unwrap_or(u32::MAX);
            info[488..492].copy_from_slice(&free.to_le_bytes());
            info[492..496].copy_from_slice(&self.next.to_le_bytes());
            self.put(self.layout.info, &info)?;
        }
        self.disk.sync()
    }

    fn cluster_len(&self, path: &str) -> Result<usize, EspError> {
        usize::try_from(self.layout.cluster)
            .map_err(|error| EspError::Write(path.to_owned(), io::Error::other(error)))
    }

    fn offset(&self, cluster: u32) -> u64 {
        self.layout.data + u64::from(cluster - 2) * self.layout.cluster
    }

    fn get(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.read_vec(self.start + at, len)
    }

    fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(self.start + at, bytes)
    }
}

/// The directory entries of a name: its long form where it needs one, then the short one.
fn entries_for(name: &str, taken: &[&[u8]], attribute: u8, first: u32, len: u32) -> Vec<u8> {
    if let Some(short) = plain_short(name) {
        return raw_entry(&short, attribute, first, len).to_vec();
    }
    let short = (1..100)
        .map(|number| tilde_short(name, number))
        .find(|short| !taken.iter().any(|raw| raw[..11] == short[..]))
        .unwrap_or_else(|| tilde_short(name, 99));
    let checksum = short_checksum(&short);
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
    }
    while !units.len().is_multiple_of(13) {
        units.push(0xffff);
    }
    let parts: Vec<&[u16]> = units.chunks(13).collect();
    let mut bytes = Vec::new();
    for (index, part) in parts.iter().enumerate().rev() {
        let last = if index + 1 == parts.len() { 0x40 } else { 0 };
        let mut raw = [0u8; 32];
        raw[0] = last | u8::try_from(index + 1).unwrap_or(0);
        raw[11] = 0x0f;
        raw[13] = checksum;
        let places = (1..11)
            .step_by(2)
            .chain((14..26).step_by(2))
            .chain((28..32).step_by(2));
        for (place, unit) in places.zip(part.iter()) {
            raw[place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes.extend(raw);
    }
    bytes.extend(raw_entry(&short, attribute, first, len));
    bytes
}

/// A name that is an 8.3 name in capitals as it stands.
fn plain_short(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let fits = |text: &str, most: usize| {
        text.len() <= most
            && text
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    if base.is_empty() || !fits(base, 8) || !fits(extension, 3) {
        return None;
    }
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base.as_bytes());
    short[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    Some(short)
}

/// `LIMIQU~1.EFI`.
fn tilde_short(name: &str, number: u32) -> [u8; 11] {
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let clean = |text: &str, most: usize| -> Vec<u8> {
        text.bytes()
            .filter(u8::is_ascii_alphanumeric)
            .map(|b| b.to_ascii_uppercase())
            .take(most)
            .collect()
    };
    let tail = format!("~{number}");
    let mut base = clean(base, 8 - tail.len());
    base.extend(tail.as_bytes());
    let extension = clean(extension, 3);
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(&base);
    short[8..8 + extension.len()].copy_from_slice(&extension);
    short
}

fn raw_entry(short: &[u8; 11], attribute: u8, first: u32, len: u32) -> [u8; 32] {
    // 1 January 2000: installs are reproducible, and the clock may be wrong here anyway.
    let date: u16 = (20 << 9) | (1 << 5) | 1;
    let mut raw = [0u8; 32];
    raw[..11].copy_from_slice(short);
    raw[11] = attribute;
    for place in [16, 18, 24] {
        raw[place..place + 2].copy_from_slice(&date.to_le_bytes());
    }
    let first = first.to_le_bytes();
    raw[20..22].copy_from_slice(&first[2..]);
    raw[26..28].copy_from_slice(&first[..2]);
    raw[28..32].copy_from_slice(&len.to_le_bytes());
    raw
}

fn disk_as_read(disk: &dyn Disk) -> &dyn ReadAt {
    disk
}
