//! What a network device counts.

use crate::devices::virtio::fault::FaultLog;
use crate::metrics::Counter;

/// Counters of one NIC. Directions are the guest's.
#[derive(Debug)]
pub struct NetCounters {
    pub(super) received: Counter,
    pub(super) received_bytes: Counter,
    /// Frames that fit into no buffer of the guest's.
    pub(super) receive_drops: Counter,
    /// Frames that had to wait for the rate limit.
    pub(super) receive_throttled: Counter,
    pub(super) sent: Counter,
    pub(super) sent_bytes: Counter,
    /// Frames the host did not take.
    pub(super) send_drops: Counter,
    /// Frames that had to wait for the rate limit.
    pub(super) send_throttled: Counter,
    /// Frames that are none, and commands that cannot be followed.
    pub(super) refused: Counter,
    pub(super) faults: FaultLog,
}

impl NetCounters {
    /// All zero, for the NIC `id`.
    pub fn new(id: &str) -> Self {
        Self {
            received: Counter::default(),
            received_bytes: Counter::default(),
            receive_drops: Counter::default(),
            receive_throttled: Counter::default(),
            sent: Counter::default(),
            sent_bytes: Counter::default(),
            send_drops: Counter::default(),
            send_throttled: Counter::default(),
            refused: Counter::default(),
            faults: FaultLog::new(format!("nic {id}")),
        }
    }
}

impl NetCounters {
    /// Names and counters.
    pub fn list(&self) -> Vec<(&'static str, Counter)> {
        vec![
            ("received_frames_total", self.received.clone()),
            ("received_bytes_total", self.received_bytes.clone()),
            ("receive_drops_total", self.receive_drops.clone()),
            ("receive_throttled_total", self.receive_throttled.clone()),
            ("sent_frames_total", self.sent.clone()),
            ("sent_bytes_total", self.sent_bytes.clone()),
            ("send_drops_total", self.send_drops.clone()),
            ("send_throttled_total", self.send_throttled.clone()),
            ("refused_requests_total", self.refused.clone()),
            ("guest_errors_total", self.faults.total().clone()),
        ]
    }
}
