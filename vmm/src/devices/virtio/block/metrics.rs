//! What a block device counts.

use crate::devices::virtio::fault::FaultLog;
use crate::metrics::Counter;

/// Counters of one disk. Operations are counted when they have succeeded.
#[derive(Debug)]
pub struct BlockCounters {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) writes: Counter,
    pub(super) write_bytes: Counter,
    pub(super) flushes: Counter,
    pub(super) discards: Counter,
    /// The host could not do it.
    pub(super) errors: Counter,
    /// The guest must not ask for it: beyond the end, parts of blocks, or writing to a read-only disk.
    pub(super) refused: Counter,
    /// Requests that had to wait for the rate limit.
    pub(super) throttled: Counter,
    pub(super) faults: FaultLog,
}

impl BlockCounters {
    /// All zero, for the disk `id`.
    pub fn new(id: &str) -> Self {
        Self {
            reads: Counter::default(),
            read_bytes: Counter::default(),
            writes: Counter::default(),
            write_bytes: Counter::default(),
            flushes: Counter::default(),
            discards: Counter::default(),
            errors: Counter::default(),
            refused: Counter::default(),
            throttled: Counter::default(),
            faults: FaultLog::new(format!("disk {id}")),
        }
    }
}

impl BlockCounters {
    /// Names and counters.
    pub fn list(&self) -> Vec<(&'static str, Counter)> {
        vec![
            ("reads_total", self.reads.clone()),
            ("read_bytes_total", self.read_bytes.clone()),
            ("writes_total", self.writes.clone()),
            ("write_bytes_total", self.write_bytes.clone()),
            ("flushes_total", self.flushes.clone()),
            ("discards_total", self.discards.clone()),
            ("host_errors_total", self.errors.clone()),
            ("refused_requests_total", self.refused.clone()),
            ("throttled_total", self.throttled.clone()),
            ("guest_errors_total", self.faults.total().clone()),
        ]
    }
}
