//! Reading FAT file systems (12, 16, 32) without mounting them: the medium's `efi.img`, sticks, seeds, our ESP.
//!
//! After Microsoft's "FAT: General Overview of On-Disk Format" 1.03. Everything read is checked: a medium is
//! somebody else's bytes, and a cluster chain that runs in a circle must end in an error.

use std::io;

use crate::host::read_at::{Pieces, ReadAt};

/// The file system is not one, or is damaged.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// The boot sector is no FAT's.
    #[error("not a FAT file system: {0}")]
    NotFat(&'static str),
    /// A structure contradicts itself.
    #[error("the FAT file system is damaged: {0}")]
    Damaged(&'static str),
    /// Reading failed.
    #[error("could not read the FAT file system")]
    Read(#[from] io::Error),
}

/// Which width its table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// FAT12.
    Twelve,
    /// FAT16.
    Sixteen,
    /// FAT32.
    ThirtyTwo,
}

/// Where its parts lie, in bytes from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Width of the table.
    pub width: Width,
    /// Bytes per sector.
    pub sector: u64,
    /// Bytes per cluster.
    pub cluster: u64,
    /// The first table.
    pub table: u64,
    /// Length of one table.
    pub table_len: u64,
    /// How many tables.
    pub tables: u64,
    /// The fixed root directory (FAT12, FAT16).
    pub root: u64,
    /// Its length; 0 on FAT32.
    pub root_len: u64,
    /// First cluster of the root directory (FAT32).
    pub root_cluster: u32,
    /// Cluster 2.
    pub data: u64,
    /// Number of clusters; valid ones are 2 to this plus 1.
    pub clusters: u32,
    /// The FSInfo sector (FAT32).
    pub info: u64,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its long name, or its short one.
    pub name: String,
    /// A directory.
    pub is_dir: bool,
    /// Its first cluster; 0 when empty.
    pub first: u32,
    /// Length in bytes.
    pub len: u64,
}

/// A FAT file system to read from.
pub struct Fat<'a> {
    inner: &'a dyn ReadAt,
    layout: Layout,
    table: Vec<u8>,
}

const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG: u8 = 0x0f;
/// Largest table read into memory: FAT32 on a stick of some TiB is not a medium of ours.
const TABLE_LEN_MAX: u64 = 64 << 20;
/// Largest directory: 65536 entries of 32 bytes (the format's own limit).
const DIRECTORY_LEN_MAX: u64 = 2 << 20;

impl<'a> Fat<'a> {
    /// Reads boot sector and table.
    pub fn open(inner: &'a dyn ReadAt) -> Result<Self, FatError> {
        let boot = inner.read_vec(0, 512)?;
        let layout = layout(&boot, inner.len())?;
        if layout.table_len > TABLE_LEN_MAX {
            return Err(FatError::Damaged("its table is too large"));
        }
        let len = usize::try_from(layout.table_len).map_err(io::Error::other)?;
        let table = inner.read_vec(layout.table, len)?;
        Ok(Self {
            inner,
            layout,
            table,
        })
    }

    /// Where its parts lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The first table, as it was when opened.
    pub fn table(&self) -> &[u8] {
        &self.table
    }

    /// Its label: the root directory's volume entry.
    pub fn label(&self) -> Result<Option<String>, FatError> {
        let bytes = self.directory(None)?;
        let volume = bytes
            .chunks_exact(32)
            .take_while(|raw| raw[0] != 0)
            .find(|raw| {
                raw[0] != 0xe5
                    && raw[11] & ATTRIBUTE_LONG != ATTRIBUTE_LONG
                    && raw[11] & ATTRIBUTE_VOLUME != 0
            });
        Ok(volume.map(|raw| String::from_utf8_lossy(&raw[..11]).trim_end().to_owned()))
    }

    /// The entry at `path` (parts divided by `/`, letters of either case); `None` when it is not there.
    pub fn find(&self, path: &str) -> Result<Option<Entry>, FatError> {
        let mut at: Option<Entry> = None;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if at.as_ref().is_some_and(|entry| !entry.is_dir) {
                return Ok(None);
            }
            let here = self.list(at.as_ref())?;
            match here.into_iter().find(|e| e.name.eq_ignore_ascii_case(part)) {
                Some(entry) => at = Some(entry),
                None => return Ok(None),
            }
        }
        Ok(at)
    }

    /// What is in a directory (`None`: the root).
    pub fn list(&self, directory: Option<&Entry>) -> Result<Vec<Entry>, FatError> {
        let bytes = self.directory(directory)?;
        let mut found = Vec::new();
        let mut long = LongName::default();
        for raw in bytes.chunks_exact(32) {
            match (raw[0], raw[11]) {
                (0, _) => break,
                (0xe5, _) => long = LongName::default(),
                (_, attributes) if attributes & 0x3f == ATTRIBUTE_LONG => long.add(raw),
                (_, attributes) if attributes & ATTRIBUTE_VOLUME != 0 => {
                    long = LongName::default();
                }
                (_, attributes) => {
                    let short = short_name(raw);
                    let name = std::mem::take(&mut long)
                        .finish(&raw[..11])
                        .unwrap_or(short);
                    if name == "." || name == ".." {
                        continue;
                    }
                    let high = match self.layout.width {
                        Width::ThirtyTwo => u32::from(u16_at(raw, 20)) << 16,
                        _ => 0,
                    };
                    found.push(Entry {
                        name,
                        is_dir: attributes & ATTRIBUTE_DIRECTORY != 0,
                        first: high | u32::from(u16_at(raw, 26)),
                        len: u64::from(u32_at(raw, 28)),
                    });
                }
            }
        }
        Ok(found)
    }

    /// A file's bytes.
    pub fn open_file(&self, file: &Entry) -> Result<Pieces<'a>, FatError> {
        let mut left = file.len;
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let mut clusters = self.chain(file.first)?.into_iter();
        while left > 0 {
            let cluster = clusters
                .next()
                .ok_or(FatError::Damaged("a file is shorter than it says"))?;
            let start = self.offset(cluster);
            let len = left.min(self.layout.cluster);
            match pieces.last_mut() {
                Some((s, l)) if *s + *l == start => *l += len,
                _ => pieces.push((start, len)),
            }
            left -= len;
        }
        Ok(Pieces::new(self.inner, pieces))
    }

    /// The clusters from `first`, in order.
    pub fn chain(&self, first: u32) -> Result<Vec<u32>, FatError> {
        let mut chain = Vec::new();
        let mut at = first;
        while at != 0 && !self.is_end(at) {
            if at < 2 || at - 2 >= self.layout.clusters {
                return Err(FatError::Damaged("a cluster number is out of range"));
            }
            chain.push(at);
            if chain.len() > self.layout.clusters as usize {
                return Err(FatError::Damaged("a cluster chain runs in a circle"));
            }
            at = self.next(at)?;
        }
        Ok(chain)
    }

    fn directory(&self, directory: Option<&Entry>) -> Result<Vec<u8>, FatError> {
        let first = match (directory, self.layout.width) {
            (Some(entry), _) => entry.first,
            (None, Width::ThirtyTwo) => self.layout.root_cluster,
            (None, _) => {
                let len = usize::try_from(self.layout.root_len).map_err(io::Error::other)?;
                return Ok(self.inner.read_vec(self.layout.root, len)?);
            }
        };
        let chain = self.chain(first)?;
        if chain.len() as u64 * self.layout.cluster > DIRECTORY_LEN_MAX {
            return Err(FatError::Damaged("a directory is too large"));
        }
        let len = usize::try_from(self.layout.cluster).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        for cluster in chain {
            bytes.extend(self.inner.read_vec(self.offset(cluster), len)?);
        }
        Ok(bytes)
    }

    /// Where a valid cluster begins.
    pub fn offset(&self, cluster: u32) -> u64 {
        self.layout.data + u64::from(cluster - 2) * self.layout.cluster
    }

    fn is_end(&self, cluster: u32) -> bool {
        match self.layout.width {
            Width::Twelve => cluster >= 0xff8,
            Width::Sixteen => cluster >= 0xfff8,
            Width::ThirtyTwo => cluster >= 0x0fff_fff8,
        }
    }

    fn next(&self, cluster: u32) -> Result<u32, FatError> {
        let at = cluster as usize;
        let out = FatError::Damaged("its table is too short");
        let found = match self.layout.width {
            Width::Twelve => {
                let pair = self.table.get(at * 3 / 2..at * 3 / 2 + 2).ok_or(out)?;
                let both = u16::from_le_bytes([pair[0], pair[1]]);
                u32::from(if at.is_multiple_of(2) {
                    both & 0xfff
                } else {
                    both >> 4
                })
            }
            Width::Sixteen => u32::from(u16_at(self.table.get(at * 2..at * 2 + 2).ok_or(out)?, 0)),
            Width::ThirtyTwo => {
                u32_at(self.table.get(at * 4..at * 4 + 4).ok_or(out)?, 0) & 0x0fff_ffff
            }
        };
        match found {
            0 | 1 => Err(FatError::Damaged("a cluster chain ends in a free cluster")),
            found => Ok(found),
        }
    }
}

fn layout(boot: &[u8], len: u64) -> Result<Layout, FatError> {
    if boot[510..512] != [0x55, 0xaa] {
        return Err(FatError::NotFat("no boot sector"));
    }
    let sector = u64::from(u16_at(boot, 11));
    let per_cluster = u64::from(boot[13]);
    let reserved = u64::from(u16_at(boot, 14));
    let tables = u64::from(boot[16]);
    let root_entries = u64::from(u16_at(boot, 17));
    let either = |small: u16, large: u32| match small {
        0 => u64::from(large),
        small => u64::from(small),
    };
    let sectors = either(u16_at(boot, 19), u32_at(boot, 32));
    let small_table = u16_at(boot, 22);
    let per_table = either(small_table, u32_at(boot, 36));
    if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
        return Err(FatError::NotFat("its sector size is none"));
    }
    if !per_cluster.is_power_of_two() || reserved == 0 || !(1..=4).contains(&tables) {
        return Err(FatError::NotFat("its boot sector makes no sense"));
    }
    if per_table == 0 || sectors == 0 {
        return Err(FatError::NotFat("it has no table"));
    }
    let root_len = (root_entries * 32).next_multiple_of(sector);
    let root = (reserved + tables * per_table) * sector;
    let data = root + root_len;
    let end = (sectors * sector).min(len);
    let cluster = per_cluster * sector;
    let clusters = end.saturating_sub(data) / cluster;
    let clusters = u32::try_from(clusters).map_err(|_| FatError::NotFat("too many clusters"))?;
    // The width is decided by the number of clusters alone (section 3.5), save that only FAT32 has no 16-bit length.
    let width = match clusters {
        _ if small_table == 0 && root_entries == 0 => Width::ThirtyTwo,
        0..4085 => Width::Twelve,
        _ => Width::Sixteen,
    };
    Ok(Layout {
        width,
        sector,
        cluster,
        table: reserved * sector,
        table_len: per_table * sector,
        tables,
        root,
        root_len,
        root_cluster: u32_at(boot, 44),
        data,
        clusters,
        info: u64::from(u16_at(boot, 48)) * sector,
    })
}

/// Collects a long name: entries come last part first, each with 13 UTF-16 units.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        if raw[0] & 0x40 != 0 {
            self.units.clear();
        }
        self.checksum = raw[13];
        let places = [1..11, 14..26, 28..32];
        let part = places
            .into_iter()
            .flat_map(|range| raw[range].chunks_exact(2))
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let mut units: Vec<u16> = part.collect();
        units.append(&mut self.units);
        self.units = units;
        self.units.truncate(20 * 13);
    }

    /// The name, when it belongs to this short one.
    fn finish(self, short: &[u8]) -> Option<String> {
        if self.units.is_empty() || self.checksum != short_checksum(short) {
            return None;
        }
        let end = self.units.iter().position(|unit| *unit == 0);
        String::from_utf16(&self.units[..end.unwrap_or(self.units.len())]).ok()
    }
}

/// Ties a long name to its short one (section 7.2).
pub fn short_checksum(short: &[u8]) -> u8 {
    short
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn short_name(raw: &[u8]) -> String {
    let lower = |text: String, flag: u8| match raw[12] & flag {
        0 => text,
        _ => text.to_ascii_lowercase(),
    };
    let base = lower(
        String::from_utf8_lossy(&raw[..8]).trim_end().to_owned(),
        0x08,
    );
    let extension = lower(
        String::from_utf8_lossy(&raw[8..11]).trim_end().to_owned(),
        0x10,
    );
    match extension.as_str() {
        "" => base,
        extension => format!("{base}.{extension}"),
    }
}

/// Little-endian; the caller's slice is long enough.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Little-endian; the caller's slice is long enough.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
