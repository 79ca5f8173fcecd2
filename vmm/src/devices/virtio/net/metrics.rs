//! What a network device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::virtio::device::Counters;
use crate::devices::virtio::fault::FaultLog;

/// Counters of one NIC. Directions are the guest's.
#[derive(Debug)]
pub struct NetCounters {
    pub(super) received: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    /// Frames that fit into no buffer of the guest's.
    pub(super) receive_drops: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    /// Frames the host did not take.
    pub(super) send_drops: AtomicU64,
    /// Frames that are none, and commands that cannot be followed.
    pub(super) refused: AtomicU64,
    pub(super) faults: FaultLog,
}

impl NetCounters {
    /// All zero, for the NIC `id`.
    pub fn new(id: &str) -> Self {
        Self {
            received: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            receive_drops: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            send_drops: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            faults: FaultLog::new(format!("nic {id}")),
        }
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters for NetCounters {
    fn read(&self) -> Vec<(&'static str, u64)> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("received_frames_total", load(&self.received)),
            ("received_bytes_total", load(&self.received_bytes)),
            ("receive_drops_total", load(&self.receive_drops)),
            ("sent_frames_total", load(&self.sent)),
            ("sent_bytes_total", load(&self.sent_bytes)),
            ("send_drops_total", load(&self.send_drops)),
            ("refused_requests_total", load(&self.refused)),
            ("guest_errors_total", self.faults.total()),
        ]
    }
}
