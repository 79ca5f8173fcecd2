//! An open image: where each cluster of the disk is, and the order in which changes become durable.

use std::collections::{BTreeSet, HashSet};
use std::io;

use super::OpenQcow2Error;
use super::cache::Cache;
use super::header::{
    AUTOCLEAR_AT, CORRUPT, HEADER_BYTES, Header, INCOMPATIBLE_AT, OFFSET_MAX, SIZE_AT, TABLE_MAX,
};
use super::pieces::Pieces;
use super::refcounts::{Refcounts, TABLE_RESERVED};
use super::storage::Storage;
use crate::disk::Access;

/// Slices of L2 tables in memory: 1 MiB, which maps 8 GiB with clusters of 64 KiB.
const SLICES_MAX: usize = 256;
/// Clusters that wait for a durable mapping before they are free.
const FREED_MAX: usize = 4096;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Exactly one mapping leads there, so it may be written in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// A request to an image that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    /// The file, or one below it.
    #[error("the image's file refused")]
    Host(#[from] io::Error),
    /// The file, while tables were being written: what is on the medium is consistent, what is in memory is not known.
    #[error("the image's tables could not be written")]
    Metadata(#[source] io::Error),
    /// The image contradicts itself.
    #[error("the image is corrupt: {0}")]
    Corrupt(&'static str),
    /// No free cluster, and the file cannot be longer.
    #[error("the image is full")]
    Full,
    /// It cannot be made larger like that.
    #[error("the image cannot have that size")]
    Unsupported,
    /// Writes are no longer accepted.
    #[error("the image is not written to any more, after an error")]
    Stopped,
}

/// What lies below an image.
pub(super) trait Source: Send {
    /// In bytes; reads as zeroes beyond.
    fn size(&self) -> u64;

    /// Fills `pieces`.
    fn fetch(&mut self, offset: u64, pieces: &mut Pieces) -> Result<(), ImageError>;
}

impl<S: Storage> Source for S {
    fn size(&self) -> u64 {
        self.end()
    }

    fn fetch(&mut self, offset: u64, pieces: &mut Pieces) -> Result<(), ImageError> {
        Ok(self.read(offset, pieces)?)
    }
}

/// What an L2 entry says of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// It is in the image below, or zero.
    Below,
    /// It reads as zeroes; there may be a cluster kept for it, which is ours alone or not.
    Zero { kept: Option<(u64, bool)> },
    /// It is at this offset, which is ours alone or not.
    Data { at: u64, own: bool },
    /// It is compressed, in these bytes.
    Compressed { at: u64, len: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// The image contradicts itself.
    Corrupt,
    /// A table was not written, or a flush failed: what the medium has is not known.
    Failed,
}

/// An open image.
pub(super) struct Image {
    pub(super) storage: Box<dyn Storage>,
    pub(super) header: Header,
    pub(super) below: Option<Box<dyn Source>>,
    pub(super) refcounts: Refcounts,
    access: Access,
    l1: Vec<u64>,
    /// L1 entries that are not on the medium yet.
    l1_unlinked: BTreeSet<usize>,
    l2: Cache,
    /// Offsets of all clusters that hold the header or tables.
    pub(super) tables: HashSet<u64>,
    /// Clusters that no mapping in memory leads to; free once that is durable.
    freed: Vec<u64>,
    health: Health,
    /// Between requests: room for a cluster that is decompressed, or filled.
    pub(super) scratch: Vec<u8>,
    pub(super) front: Pieces,
}

fn invalid(what: &'static str) -> OpenQcow2Error {
    OpenQcow2Error::Invalid { what }
}

/// Reads a table of big-endian offsets and notes the clusters it leads to.
fn read_table(
    storage: &dyn Storage,
    at: u64,
    entries: u64,
    check: impl Fn(u64) -> Option<u64>,
    tables: &mut HashSet<u64>,
    what: &'static str,
) -> Result<Vec<u64>, OpenQcow2Error> {
    let mut bytes = vec![0; entries as usize * 8];
    storage.read_bytes(at, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    let table: Vec<u64> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
    for entry in table.iter().filter(|entry| **entry != 0) {
        let offset = check(*entry).ok_or(invalid(what))?;
        if offset != 0 && !tables.insert(offset) {
            return Err(invalid("two of its tables overlap"));
        }
    }
    Ok(table)
}

impl Image {
    /// Reads header and tables; prepares for writing if that is wanted. `depth` is the place in the chain.
    pub(super) fn open(
        storage: Box<dyn Storage>,
        access: Access,
        below: Option<Box<dyn Source>>,
        depth: usize,
    ) -> Result<Self, OpenQcow2Error> {
        let mut first = [0; HEADER_BYTES];
        storage.read_bytes(0, &mut first)?;
        let header = Header::parse(&first, storage.end(), access)?;
        match (header.has_backing, below.is_some()) {
            (true, false) => return Err(OpenQcow2Error::BackingMissing { depth }),
            (false, true) => return Err(OpenQcow2Error::BackingUnexpected { depth }),
            _ => {}
        }
        let cluster = header.cluster_size();
        let file_end = storage.end().next_multiple_of(cluster);
        let inside =
            |offset: u64| offset.is_multiple_of(cluster) && offset != 0 && offset < file_end;
        let mut tables = HashSet::from([0]);
        let runs = [
            (header.l1_offset, (header.l1_entries * 8).div_ceil(cluster)),
            (header.refcount_offset, header.refcount_clusters),
        ];
        for (start, clusters) in runs {
            for number in 0..clusters {
                if !tables.insert(start + number * cluster) {
                    return Err(invalid("two of its tables overlap"));
                }
            }
        }
        let l1_offset = |entry: u64| {
            (entry & !(OFFSET | COPIED) == 0 && inside(entry & OFFSET)).then_some(entry & OFFSET)
        };
        let l1 = read_table(
            &*storage,
            header.l1_offset,
            header.l1_entries,
            l1_offset,
            &mut tables,
            "an entry of its L1 table",
        )?;
        let block = |entry: u64| (entry & TABLE_RESERVED == 0 && inside(entry)).then_some(entry);
        let table = read_table(
            &*storage,
            header.refcount_offset,
            header.refcount_clusters * cluster / 8,
            block,
            &mut tables,
            "an entry of its refcount table",
        )?;
        let mut image = Self {
            refcounts: Refcounts::new(&header, table),
            l2: Cache::new(cluster, SLICES_MAX),
            storage,
            header,
            below,
            access,
            l1,
            l1_unlinked: BTreeSet::new(),
            tables,
            freed: Vec::new(),
            health: Health::Good,
            scratch: Vec::new(),
            front: Pieces::default(),
        };
        if access == Access::ReadWrite && image.header.autoclear != 0 {
            // What these stand for (dirty bitmaps) is not kept up by us, and so no longer valid.
            image.storage.write_bytes(AUTOCLEAR_AT, &mut [0; 8])?;
            image.storage.flush()?;
        }
        Ok(image)
    }

    fn l2_entries(&self) -> u64 {
        self.header.cluster_size() / 8
    }

    /// The cluster of the disk at `offset`, as index into the L1 table and into an L2 table.
    fn indexes(&self, offset: u64) -> (usize, u64) {
        let cluster = offset >> self.header.cluster_bits;
        let index = usize::try_from(cluster / self.l2_entries()).unwrap_or(usize::MAX);
        (index, cluster % self.l2_entries())
    }

    /// How many bytes of the disk behind `offset` have no L2 table, up to that table's end; 0 if there is one.
    pub(super) fn unmapped(&self, offset: u64) -> u64 {
        let (l1, l2) = self.indexes(offset);
        match self.l1.get(l1) {
            Some(0) => {
                let in_cluster = offset & (self.header.cluster_size() - 1);
                ((self.l2_entries() - l2) << self.header.cluster_bits) - in_cluster
            }
            _ => 0,
        }
    }

    /// The entry for the cluster at `offset`, as it is in the table.
    fn entry(&mut self, offset: u64) -> Result<u64, ImageError> {
        let (l1, l2) = self.indexes(offset);
        let table = self.l1.get(l1).map_or(0, |entry| entry & OFFSET);
        if table == 0 {
            return Ok(0);
        }
        let at = table + 8 * l2;
        self.make_room(at)?;
        let bytes = self.l2.read(&*self.storage, at, 8)?;
        Ok(bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Where the cluster at `offset` is.
    pub(super) fn mapping(&mut self, offset: u64) -> Result<Mapping, ImageError> {
        let entry = self.entry(offset)?;
        let mapping = self.understand(entry);
        self.note(mapping)
    }

    fn understand(&self, entry: u64) -> Result<Mapping, ImageError> {
        let cluster = self.header.cluster_size();
        let file_end = self.storage.end().next_multiple_of(cluster);
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 {
                return Err(ImageError::Corrupt(
                    "a compressed cluster is marked as writable",
                ));
            }
            let bits = 62 - (self.header.cluster_bits - 8);
            let at = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            let len = (sectors + 1) * 512 - at % 512;
            if at < cluster || at >= file_end || at + len > file_end + cluster {
                return Err(ImageError::Corrupt(
                    "a compressed cluster is beyond the end",
                ));
            }
            return Ok(Mapping::Compressed { at, len });
        }
        let (at, own) = (entry & OFFSET, entry & COPIED != 0);
        if entry & !(OFFSET | COPIED | ZERO) != 0 {
            return Err(ImageError::Corrupt("reserved bits of an L2 entry are set"));
        }
        if at != 0 && (!at.is_multiple_of(cluster) || at >= file_end) {
            return Err(ImageError::Corrupt(
                "a cluster is beyond the end or not aligned",
            ));
        }
        if self.tables.contains(&at) && at != 0 {
            return Err(ImageError::Corrupt("a table is mapped as data"));
        }
        match (entry & ZERO != 0, at) {
            (true, _) if self.header.version < 3 => {
                Err(ImageError::Corrupt("reserved bits of an L2 entry are set"))
            }
            (true, 0) => Ok(Mapping::Zero { kept: None }),
            (true, at) => Ok(Mapping::Zero {
                kept: Some((at, own)),
            }),
            (false, 0) => Ok(Mapping::Below),
            (false, at) => Ok(Mapping::Data { at, own }),
        }
    }

    /// The mapping of a cluster, written in the table's way.
    pub(super) fn encode(mapping: Mapping) -> u64 {
        let copied = |own| if own { COPIED } else { 0 };
        match mapping {
            // Compressed clusters are never made.
            Mapping::Below | Mapping::Compressed { .. } => 0,
            Mapping::Zero { kept: None } => ZERO,
            Mapping::Zero {
                kept: Some((at, own)),
            } => at | ZERO | copied(own),
            Mapping::Data { at, own } => at | copied(own),
        }
    }

    /// Changes a mapping, in memory. What it led to before is free once that is durable. The L2 table is our own.
    pub(super) fn map(&mut self, offset: u64, new: Mapping) -> Result<(), ImageError> {
        let old = self.mapping(offset)?;
        if old == new {
            return Ok(());
        }
        let (l1, l2) = self.indexes(offset);
        let at = (self.l1[l1] & OFFSET) + 8 * l2;
        self.make_room(at)?;
        let entry = Self::encode(new).to_be_bytes();
        self.l2.write(&*self.storage, at, &entry)?;
        let kept = match new {
            Mapping::Data { at, .. } => at,
            Mapping::Zero { kept } => kept.map_or(0, |(at, _)| at),
            Mapping::Below | Mapping::Compressed { .. } => 0,
        };
        match old {
            Mapping::Data { at, .. }
            | Mapping::Zero {
                kept: Some((at, _)),
            } if at != kept => self.freed.push(at),
            Mapping::Compressed { at, len } => {
                let bits = self.header.cluster_bits;
                let clusters = at >> bits..=(at + len - 1) >> bits;
                self.freed.extend(clusters.map(|cluster| cluster << bits));
            }
            _ => {}
        }
        if self.freed.len() >= FREED_MAX {
            self.commit()?;
        }
        Ok(())
    }

    /// Makes sure that the L2 table for `offset` exists and is referred to by this image's L1 table alone.
    pub(super) fn own_l2(&mut self, offset: u64) -> Result<(), ImageError> {
        let (l1, _) = self.indexes(offset);
        let old = *self.l1.get(l1).ok_or(ImageError::Corrupt(
            "the L1 table is too short for the disk",
        ))?;
        if old & COPIED != 0 {
            return Ok(());
        }
        let cluster = self.header.cluster_size();
        let new = self.allocate()?;
        let made = self.copy_table(old & OFFSET, new, cluster);
        if let Err(error) = made {
            self.refcounts.give_back(&mut *self.storage, new)?;
            return Err(error.into());
        }
        self.l2.forget(new, cluster);
        self.tables.insert(new);
        self.l1[l1] = new | COPIED;
        self.l1_unlinked.insert(l1);
        if old != 0 {
            self.freed.push(old & OFFSET);
        }
        Ok(())
    }

    /// Fills a cluster with another table's content, or with zeroes if there is none. The other one is not ours alone,
    /// so nothing of it waits in memory to be written.
    fn copy_table(&mut self, old: u64, new: u64, cluster: u64) -> io::Result<()> {
        if old == 0 {
            return self.storage.write_zeroes(new, cluster);
        }
        let mut bytes = vec![0; cluster as usize];
        self.storage.read_bytes(old, &mut bytes)?;
        self.storage.write_bytes(new, &mut bytes)
    }

    /// Takes a cluster for new data.
    pub(super) fn allocate(&mut self) -> Result<u64, ImageError> {
        let taken = self
            .refcounts
            .allocate(&mut *self.storage, &mut self.tables);
        self.note(taken)
    }

    fn make_room(&mut self, at: u64) -> Result<(), ImageError> {
        if self.l2.has_room_for(at) {
            return Ok(());
        }
        self.commit()
    }

    /// Makes everything that was written so far durable: data, then counts, then what maps to them.
    pub(super) fn commit(&mut self) -> Result<(), ImageError> {
        let clean = !self.l2.is_dirty() && self.l1_unlinked.is_empty();
        match (self.access, self.health) {
            (Access::ReadWrite, Health::Good) => {}
            (_, Health::Good | Health::Corrupt) if clean => return Ok(self.storage.flush()?),
            // Not everything that was written can be made durable.
            _ => return Err(ImageError::Stopped),
        }
        let written = self.commit_tables().map_err(ImageError::Metadata);
        self.note(written)?;
        let released = self.release_freed();
        self.note(released)
    }

    fn commit_tables(&mut self) -> io::Result<()> {
        let storage = &mut *self.storage;
        if self.refcounts.is_dirty() {
            self.refcounts.write(storage)?;
        }
        if self.l2.is_dirty() || !self.l1_unlinked.is_empty() {
            storage.flush()?;
            self.l2.write_dirty(storage)?;
        }
        if !self.l1_unlinked.is_empty() {
            storage.flush()?;
            for index in &self.l1_unlinked {
                let mut entry = self.l1[*index].to_be_bytes();
                storage.write_bytes(self.header.l1_offset + 8 * *index as u64, &mut entry)?;
            }
            self.l1_unlinked.clear();
        }
        storage.flush()
    }

    fn release_freed(&mut self) -> Result<(), ImageError> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        let cluster = self.header.cluster_size();
        let mut hole = 0..0;
        for offset in freed {
            if !self.refcounts.release(&mut *self.storage, offset)? {
                continue;
            }
            if hole.end != offset {
                self.punch(hole);
                hole = offset..offset;
            }
            hole.end = offset + cluster;
        }
        self.punch(hole);
        Ok(())
    }

    fn punch(&mut self, hole: std::ops::Range<u64>) {
        if !hole.is_empty() {
            // A file system that cannot keeps the space.
            let _ = self.storage.punch(hole.start, hole.end - hole.start);
        }
    }

    /// Refuses to write to an image that is not to be written to any more.
    pub(super) fn check_writable(&self) -> Result<(), ImageError> {
        match (self.access, self.health) {
            (Access::ReadWrite, Health::Good) => Ok(()),
            _ => Err(ImageError::Stopped),
        }
    }

    /// Draws the consequences of an error.
    pub(super) fn note<T>(&mut self, result: Result<T, ImageError>) -> Result<T, ImageError> {
        if self.health == Health::Good {
            match &result {
                Err(ImageError::Metadata(_)) => self.health = Health::Failed,
                Err(ImageError::Corrupt(_)) if self.access == Access::ReadWrite => {
                    self.health = Health::Corrupt;
                    self.mark_corrupt();
                }
                _ => {}
            }
        }
        result
    }

    /// So that whoever opens it next repairs it first.
    fn mark_corrupt(&mut self) {
        if self.header.version >= 3 {
            self.header.incompatible |= CORRUPT;
            let mut bits = self.header.incompatible.to_be_bytes();
            // If this does not work either there is nobody left to tell.
            let _ = self.storage.write_bytes(INCOMPATIBLE_AT, &mut bits);
            let _ = self.storage.flush();
        }
    }

    /// Makes the disk larger. The L1 table is made longer where it is, as far as its clusters go.
    pub(super) fn grow(&mut self, size: u64) -> Result<(), ImageError> {
        self.check_writable()?;
        let cluster = self.header.cluster_size();
        let have = self.l1.len() as u64;
        let need = size
            .div_ceil(self.l2_entries() << self.header.cluster_bits)
            .max(have);
        let room = (have * 8).next_multiple_of(cluster).min(TABLE_MAX) / 8;
        let snapshots = self.header.snapshots > 0;
        if size < self.header.size || need > room || snapshots || size > OFFSET_MAX {
            return Err(ImageError::Unsupported);
        }
        self.commit()?;
        let mut none = vec![0; (need - have) as usize * 8];
        // The two fields, and between them that there is no encryption; one sector, so both or neither are changed.
        let mut fields = size.to_be_bytes().to_vec();
        fields.extend([0; 4]);
        fields.extend((need as u32).to_be_bytes());
        let written = self
            .storage
            .write_bytes(self.header.l1_offset + have * 8, &mut none)
            .and_then(|()| self.storage.flush())
            .and_then(|()| self.storage.write_bytes(SIZE_AT, &mut fields))
            .and_then(|()| self.storage.flush())
            .map_err(ImageError::Metadata);
        self.note(written)?;
        self.l1.resize(need as usize, 0);
        self.header.l1_entries = need;
        self.header.size = size;
        Ok(())
    }
}
