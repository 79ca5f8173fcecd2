//! What a block device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::virtio::device::Counters;
use crate::devices::virtio::fault::FaultLog;

/// Counters of one disk. Operations are counted when they have succeeded.
#[derive(Debug)]
pub struct BlockCounters {
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) write_bytes: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discards: AtomicU64,
    /// The host could not do it.
    pub(super) errors: AtomicU64,
    /// The guest must not ask for it: beyond the end, or writing to a read-only disk.
    pub(super) refused: AtomicU64,
    pub(super) faults: FaultLog,
}

impl BlockCounters {
    /// All zero, for the disk `id`.
    pub fn new(id: &str) -> Self {
        Self {
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            discards: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            faults: FaultLog::new(format!("disk {id}")),
        }
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters for BlockCounters {
    fn read(&self) -> Vec<(&'static str, u64)> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("reads_total", load(&self.reads)),
            ("read_bytes_total", load(&self.read_bytes)),
            ("writes_total", load(&self.writes)),
            ("write_bytes_total", load(&self.write_bytes)),
            ("flushes_total", load(&self.flushes)),
            ("discards_total", load(&self.discards)),
            ("host_errors_total", load(&self.errors)),
            ("refused_requests_total", load(&self.refused)),
            ("guest_errors_total", self.faults.total()),
        ]
    }
}
