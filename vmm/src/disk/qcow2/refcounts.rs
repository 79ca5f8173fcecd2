//! How often each cluster of the file is referred to, and which ones are free.
//!
//! A count may be too high on the medium at any time: that is lost space. It is never too low there for what a durable
//! mapping leads to, so [`super::image`] writes blocks before mappings, and releases clusters after them.

use std::collections::{BTreeSet, HashSet};

use super::cache::Cache;
use super::header::{Header, OFFSET_MAX, REFCOUNT_TABLE_AT, TABLE_MAX};
use super::image::ImageError;
use super::storage::Storage;

/// Slices of refcount blocks in memory: 256 KiB.
const SLICES_MAX: usize = 64;
/// Freed clusters that are remembered; others are found by looking.
const FREE_MAX: usize = 4096;
/// Clusters that are looked at for a free one before the file is made longer instead.
const LOOK_MAX: u64 = 1 << 18;

/// Bits of an entry of the refcount table that are no offset.
pub(super) const TABLE_RESERVED: u64 = 0x1ff;

/// The refcounts of an image that is written to.
pub(super) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    table: Vec<u64>,
    table_at: u64,
    table_clusters: u64,
    /// Entries of the table that are not on the medium yet, because their blocks may not be.
    unlinked: BTreeSet<usize>,
    blocks: Cache,
    free: Vec<u64>,
    /// The next cluster to look at.
    look: u64,
    /// Where to begin anew: something was freed there and not remembered.
    again: Option<u64>,
}

impl Refcounts {
    /// Over a table that was read and checked.
    pub(super) fn new(header: &Header, table: Vec<u64>) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table,
            table_at: header.refcount_offset,
            table_clusters: header.refcount_clusters,
            unlinked: BTreeSet::new(),
            blocks: Cache::new(header.cluster_size(), SLICES_MAX),
            free: Vec::new(),
            look: 0,
            again: None,
        }
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a block.
    fn per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.order
    }

    /// Where the count of `cluster` is: the byte in the file, and the bit in it for counts smaller than a byte.
    fn place(&self, cluster: u64) -> Option<(u64, u32)> {
        let region = usize::try_from(cluster / self.per_block()).ok()?;
        let block = *self.table.get(region).filter(|block| **block != 0)?;
        let bit = (cluster % self.per_block()) << self.order;
        Some((block + bit / 8, (bit % 8) as u32))
    }

    fn bytes(&self) -> usize {
        (1 << self.order >> 3_usize).max(1)
    }

    /// How often `cluster` is referred to.
    pub(super) fn get(
        &mut self,
        storage: &mut dyn Storage,
        cluster: u64,
    ) -> Result<u64, ImageError> {
        let (order, len) = (self.order, self.bytes());
        let Some((at, shift)) = self.place(cluster) else {
            return Ok(0);
        };
        self.make_room(storage, at)?;
        let bytes = self.blocks.read(storage, at, len)?;
        if order < 3 {
            return Ok(u64::from(bytes[0] >> shift) & ((1 << (1 << order)) - 1));
        }
        Ok(bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn set(
        &mut self,
        storage: &mut dyn Storage,
        cluster: u64,
        value: u64,
    ) -> Result<(), ImageError> {
        let (order, len) = (self.order, self.bytes());
        let (at, shift) = self
            .place(cluster)
            .ok_or(ImageError::Corrupt("a cluster in use has no refcount"))?;
        self.make_room(storage, at)?;
        if order < 3 {
            let mask = ((1_u16 << (1 << order)) - 1) as u8;
            let old = self.blocks.read(storage, at, 1)?[0];
            let new = old & !(mask << shift) | (value as u8 & mask) << shift;
            self.blocks.write(storage, at, &[new])?;
        } else {
            let bytes = value.to_be_bytes();
            self.blocks.write(storage, at, &bytes[8 - len..])?;
        }
        Ok(())
    }

    /// Counts may be written at any time, so any slice can make room.
    fn make_room(&mut self, storage: &mut dyn Storage, at: u64) -> Result<(), ImageError> {
        if !self.blocks.has_room_for(at) {
            self.blocks
                .write_dirty(storage)
                .map_err(ImageError::Metadata)?;
        }
        Ok(())
    }

    /// Takes a free cluster: its offset. Its count is 1 from now on, in memory.
    pub(super) fn allocate(
        &mut self,
        storage: &mut dyn Storage,
        tables: &mut HashSet<u64>,
    ) -> Result<u64, ImageError> {
        loop {
            let cluster = self.candidate(storage)?;
            let offset = self.offset(storage, cluster)?;
            if tables.contains(&offset) {
                return Err(ImageError::Corrupt("a table's cluster is counted as free"));
            }
            let region = cluster / self.per_block();
            match self.table.get(region as usize) {
                None => self.grow_table(storage, tables, cluster)?,
                Some(0) => {
                    // The first cluster of its region becomes the block that counts the region, and so itself.
                    storage.write_zeroes(offset, self.cluster_size())?;
                    self.adopt_block(region as usize, offset, tables);
                    self.set(storage, cluster, 1)?;
                }
                Some(_) => {
                    self.set(storage, cluster, 1)?;
                    return Ok(offset);
                }
            }
        }
    }

    fn adopt_block(&mut self, region: usize, offset: u64, tables: &mut HashSet<u64>) {
        self.blocks.forget(offset, self.cluster_size());
        self.table[region] = offset;
        self.unlinked.insert(region);
        tables.insert(offset);
    }

    /// The offset of a cluster that is to be used, if the file can be that long.
    fn offset(&self, storage: &dyn Storage, cluster: u64) -> Result<u64, ImageError> {
        let end = (cluster + 1)
            .checked_mul(self.cluster_size())
            .filter(|end| *end <= OFFSET_MAX)
            .ok_or(ImageError::Full)?;
        if !storage.grows() && end > storage.end() {
            return Err(ImageError::Full);
        }
        Ok(end - self.cluster_size())
    }

    /// A cluster whose count is 0.
    fn candidate(&mut self, storage: &mut dyn Storage) -> Result<u64, ImageError> {
        while let Some(cluster) = self.free.pop() {
            if self.get(storage, cluster)? == 0 {
                return Ok(cluster);
            }
        }
        let end = storage.end().div_ceil(self.cluster_size());
        for _ in 0..LOOK_MAX {
            if self.look >= end
                && let Some(again) = self.again.take()
            {
                self.look = again;
            }
            let cluster = self.look;
            self.look += 1;
            if self.get(storage, cluster)? == 0 {
                return Ok(cluster);
            }
        }
        // A large file, all in use so far: looking goes on from here next time, and this one is put at the end.
        for cluster in end.max(self.look)..end.max(self.look) + LOOK_MAX {
            if self.get(storage, cluster)? == 0 {
                return Ok(cluster);
            }
        }
        Err(ImageError::Full)
    }

    /// Takes back an allocation that nothing refers to, not even in memory.
    pub(super) fn give_back(
        &mut self,
        storage: &mut dyn Storage,
        offset: u64,
    ) -> Result<(), ImageError> {
        let cluster = offset >> self.cluster_bits;
        self.set(storage, cluster, 0)?;
        self.remember(cluster);
        Ok(())
    }

    /// One mapping less leads to this cluster, durably. True if it is free now.
    pub(super) fn release(
        &mut self,
        storage: &mut dyn Storage,
        offset: u64,
    ) -> Result<bool, ImageError> {
        let cluster = offset >> self.cluster_bits;
        let count = self.get(storage, cluster)?;
        let left = count
            .checked_sub(1)
            .ok_or(ImageError::Corrupt("a cluster in use is counted as free"))?;
        self.set(storage, cluster, left)?;
        if left == 0 {
            self.remember(cluster);
        }
        Ok(left == 0)
    }

    fn remember(&mut self, cluster: u64) {
        if self.free.len() < FREE_MAX {
            self.free.push(cluster);
        } else if cluster < self.look {
            self.again = Some(self.again.map_or(cluster, |again| again.min(cluster)));
        }
    }

    /// Makes the table long enough for `cluster`, whose region and all behind it are beyond the table and thus free.
    /// The new table is written in full and made durable before the header leads to it.
    fn grow_table(
        &mut self,
        storage: &mut dyn Storage,
        tables: &mut HashSet<u64>,
        cluster: u64,
    ) -> Result<(), ImageError> {
        let per_table_cluster = self.cluster_size() / 8;
        let first_region = cluster / self.per_block();
        // The blocks that count the new clusters come first, then the table. How many blocks depends on how many blocks.
        let (mut blocks, mut clusters, mut entries) = (1, 1, 0);
        for _ in 0..64 {
            let last_region = (cluster + blocks + clusters - 1) / self.per_block();
            blocks = last_region - first_region + 1;
            entries = (last_region + 1).max(self.table.len() as u64 * 3 / 2);
            entries = entries.next_multiple_of(per_table_cluster);
            clusters = entries / per_table_cluster;
        }
        if entries * 8 > TABLE_MAX {
            return Err(ImageError::Full);
        }
        let table_at = self.offset(storage, cluster + blocks)?;
        self.offset(storage, cluster + blocks + clusters - 1)?;
        let taken = cluster..cluster + blocks + clusters;
        if taken
            .clone()
            .any(|taken| tables.contains(&(taken << self.cluster_bits)))
        {
            return Err(ImageError::Corrupt("a table's cluster is counted as free"));
        }
        for block in cluster..cluster + blocks {
            storage.write_zeroes(block << self.cluster_bits, self.cluster_size())?;
        }
        let mut table = self.table.clone();
        table.resize(entries as usize, 0);
        for number in 0..blocks {
            table[(first_region + number) as usize] = (cluster + number) << self.cluster_bits;
        }
        let mut bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        storage.write_bytes(table_at, &mut bytes)?;

        // Only now, when all the space is there, anything changes.
        self.table.resize(entries as usize, 0);
        for number in 0..blocks {
            let offset = (cluster + number) << self.cluster_bits;
            self.adopt_block((first_region + number) as usize, offset, tables);
        }
        for taken in taken {
            self.set(storage, taken, 1)?;
            tables.insert(taken << self.cluster_bits);
        }
        let mut place = table_at.to_be_bytes().to_vec();
        place.extend((clusters as u32).to_be_bytes());
        self.blocks
            .write_dirty(storage)
            .and_then(|()| storage.flush())
            .and_then(|()| storage.write_bytes(REFCOUNT_TABLE_AT, &mut place))
            .and_then(|()| storage.flush())
            .map_err(ImageError::Metadata)?;
        self.unlinked.clear();
        let (old_at, old_clusters) = (self.table_at, self.table_clusters);
        (self.table_at, self.table_clusters) = (table_at, clusters);
        for number in 0..old_clusters {
            let offset = old_at + (number << self.cluster_bits);
            tables.remove(&offset);
            self.release(storage, offset)?;
        }
        Ok(())
    }

    /// Writes the counts, and links new blocks once they are durable.
    pub(super) fn write(&mut self, storage: &mut dyn Storage) -> std::io::Result<()> {
        self.blocks.write_dirty(storage)?;
        if self.unlinked.is_empty() {
            return Ok(());
        }
        storage.flush()?;
        for region in &self.unlinked {
            let mut entry = self.table[*region].to_be_bytes();
            storage.write_bytes(self.table_at + 8 * *region as u64, &mut entry)?;
        }
        self.unlinked.clear();
        Ok(())
    }

    /// Whether counts are waiting to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.blocks.is_dirty() || !self.unlinked.is_empty()
    }
}
