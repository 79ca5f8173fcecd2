//! Pieces of tables in memory, as many as were allowed, changed ones included.

use std::collections::HashMap;
use std::io;

use super::storage::Storage;

/// A piece of a table is at most this long, so that a changed entry of a large table is cheap to write.
const SLICE_MAX: u64 = 4096;

#[derive(Debug)]
struct Slot {
    /// Where in the file.
    at: u64,
    data: Box<[u8]>,
    dirty: bool,
    used: u64,
}

/// A bounded cache of slices of tables.
#[derive(Debug)]
pub(super) struct Cache {
    slice: u64,
    max: usize,
    slots: Vec<Slot>,
    index: HashMap<u64, usize>,
    dirty: usize,
    clock: u64,
}

impl Cache {
    /// At most `max` slices of tables that are clusters of this size.
    pub(super) fn new(cluster_size: u64, max: usize) -> Self {
        Self {
            slice: cluster_size.min(SLICE_MAX),
            max,
            slots: Vec::new(),
            index: HashMap::new(),
            dirty: 0,
            clock: 0,
        }
    }

    /// Whether anything is not written yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// Whether the slice around `at` can be had without writing another one first.
    pub(super) fn has_room_for(&self, at: u64) -> bool {
        self.dirty < self.max || self.index.contains_key(&self.start(at))
    }

    fn start(&self, at: u64) -> u64 {
        at & !(self.slice - 1)
    }

    /// The slice around `at`, and where in it `at` is. Another slice, the one that was not used for longest, may have to
    /// make room; there must be one that is not dirty.
    fn slot(&mut self, storage: &dyn Storage, at: u64) -> io::Result<(&mut Slot, usize)> {
        let start = self.start(at);
        let number = match self.index.get(&start) {
            Some(number) => *number,
            None => self.load(storage, start)?,
        };
        self.clock += 1;
        let slot = &mut self.slots[number];
        slot.used = self.clock;
        Ok((slot, (at - start) as usize))
    }

    fn load(&mut self, storage: &dyn Storage, start: u64) -> io::Result<usize> {
        let mut data = vec![0; self.slice as usize].into_boxed_slice();
        storage.read_bytes(start, &mut data)?;
        let slot = Slot {
            at: start,
            data,
            dirty: false,
            used: 0,
        };
        let number = if self.slots.len() < self.max {
            self.slots.push(slot);
            self.slots.len() - 1
        } else {
            let clean = self.slots.iter().enumerate().filter(|(_, s)| !s.dirty);
            let (number, _) = clean
                .min_by_key(|(_, slot)| slot.used)
                .ok_or_else(|| io::Error::other("all slices are dirty"))?;
            self.index.remove(&self.slots[number].at);
            self.slots[number] = slot;
            number
        };
        self.index.insert(start, number);
        Ok(number)
    }

    /// `len` bytes at `at`, which do not cross a slice's end.
    pub(super) fn read(&mut self, storage: &dyn Storage, at: u64, len: usize) -> io::Result<&[u8]> {
        let (slot, from) = self.slot(storage, at)?;
        Ok(&slot.data[from..from + len])
    }

    /// Changes bytes at `at`.
    pub(super) fn write(&mut self, storage: &dyn Storage, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (slot, from) = self.slot(storage, at)?;
        slot.data[from..from + bytes.len()].copy_from_slice(bytes);
        let newly = !std::mem::replace(&mut slot.dirty, true);
        self.dirty += usize::from(newly);
        Ok(())
    }

    /// Writes what is dirty, in the file's order.
    pub(super) fn write_dirty(&mut self, storage: &mut dyn Storage) -> io::Result<()> {
        if self.dirty == 0 {
            return Ok(());
        }
        let mut dirty: Vec<&mut Slot> = self.slots.iter_mut().filter(|slot| slot.dirty).collect();
        dirty.sort_by_key(|slot| slot.at);
        for slot in dirty {
            storage.write_bytes(slot.at, &mut slot.data)?;
            slot.dirty = false;
            self.dirty -= 1;
        }
        Ok(())
    }

    /// Drops what is known of a table whose cluster is used for something else from now on.
    pub(super) fn forget(&mut self, from: u64, len: u64) {
        for start in (from..from + len).step_by(self.slice as usize) {
            if let Some(number) = self.index.remove(&start) {
                let gone = self.slots.swap_remove(number);
                self.dirty -= usize::from(gone.dirty);
                if let Some(moved) = self.slots.get(number) {
                    self.index.insert(moved.at, number);
                }
            }
        }
    }
}
