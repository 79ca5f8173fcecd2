//! What a virtio device is to its transport.
//!
//! A device knows its features, its configuration bytes and what to do with its queues. It knows nothing of PCI. Its life
//! (virtio 1.3 §2.1, §3.1):
//!
//! ```text
//!            activate(queues)                    stop() ─► queues
//!   idle ─────────────────────────► active ──────────────────────────► idle
//!    ▲   driver said DRIVER_OK         │    driver reset it, or the        │
//!    │                                 │    machine is saved               │
//!    └─────────────────────────────────┼───────────────────────────────────┘
//!                                      │ a queue makes no sense
//!                                      ▼
//!                       that queue stands still; the driver sees DEVICE_NEEDS_RESET
//! ```
//!
//! A device's threads exist from its construction, before any system call filter is in place, and idle while it does;
//! activation hands them queues, stopping takes the queues back when nothing is in flight any more. The queues that come
//! back say exactly how far they were processed, so a save is `stop`, take the state, and a restore is `activate` with
//! queues made from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use crate::metrics::Counter;
use crate::pci::msix::MsixVectors;

/// Feature bits every device may have (virtio 1.3 §6).
pub mod feature {
    /// Chains may continue in a table outside the ring.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say from which index on they want to be notified.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device; we are nothing else.
    pub const VERSION_1: u64 = 1 << 32;

    /// What every device of ours offers.
    pub const COMMON: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1;
}

/// Which device it is, and how PCI classifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Network card.
    Net,
    /// Block device.
    Block,
    /// Entropy source.
    Rng,
}

impl DeviceKind {
    /// Device ID (virtio 1.3 §5).
    pub fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Rng => 4,
        }
    }

    /// PCI class code, as `0xCCSSPP`.
    pub fn pci_class(self) -> u32 {
        match self {
            Self::Net => 0x02_00_00,
            Self::Block => 0x01_80_00,
            Self::Rng => 0x00_ff_00,
        }
    }
}

/// A queue the driver has enabled.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Which of the device's queues.
    pub index: u16,
    /// Where its rings are and how far they are processed. Checked: the rings are in guest memory.
    pub queue: Queue,
    /// Signalled when the driver notifies the queue.
    pub kick: Arc<EventFd>,
}

/// What a device gets when the driver has finished setting it up.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub mem: Arc<GuestMemory>,
    /// Features the driver accepted: a subset of the device's, VERSION_1 included.
    pub features: u64,
    /// The enabled queues, by ascending index.
    pub queues: Vec<ActiveQueue>,
    /// The way to interrupt the driver.
    pub interrupt: Arc<VirtioInterrupt>,
}

/// The driver asked for something the device cannot do; it is told to reset the device.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue the device cannot work without was not enabled.
    #[error("queue {index} is needed and was not enabled")]
    QueueMissing {
        /// The queue.
        index: u16,
    },
    /// The backend refused.
    #[error("the backend refused to be set up")]
    Backend(#[source] std::io::Error),
    /// A worker thread has ended.
    #[error("a worker thread of the device is gone")]
    WorkerGone,
}

/// One virtio device.
pub trait VirtioDevice: Send {
    /// Which device it is.
    fn kind(&self) -> DeviceKind;

    /// Features on offer. Does not change.
    fn features(&self) -> u64;

    /// The largest size of each queue; their number is the number of queues. Does not change.
    fn queue_sizes(&self) -> &[u16];

    /// Device-specific configuration: fills what exists, leaves the rest as it is (zeroes).
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// A write to device-specific configuration; most have no writable field.
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts processing. Called only while idle.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops processing, waits for what is in flight, and gives the queues back. Returns nothing while idle.
    fn stop(&mut self) -> Vec<ActiveQueue>;

    /// What the device counts, for [`crate::metrics::Registry`].
    fn counters(&self) -> Vec<(&'static str, Counter)>;
}

/// The driver has no vector for this event (virtio 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// How a device's threads interrupt the driver; shared with the transport, where the driver says by which vector.
#[derive(Debug)]
pub struct VirtioInterrupt {
    vectors: Arc<MsixVectors>,
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    needs_reset: AtomicBool,
    generation: AtomicU8,
}

impl VirtioInterrupt {
    /// For a device with `queues` queues; no vector is assigned.
    pub fn new(vectors: Arc<MsixVectors>, queues: usize) -> Self {
        Self {
            vectors,
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU8::new(0),
        }
    }

    /// There are new entries in the used ring of queue `index`.
    pub fn signal_queue(&self, index: u16) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::Relaxed);
        let vector = self
            .queue_vectors
            .get(usize::from(index))
            .map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed));
        self.vectors.signal(vector);
    }

    /// The device's configuration has changed.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.isr.fetch_or(ISR_CONFIG, Ordering::Relaxed);
        self.vectors
            .signal(self.config_vector.load(Ordering::Relaxed));
    }

    /// The device cannot go on before the driver resets it (virtio 1.3 §2.1.2).
    pub fn fail(&self) {
        if !self.needs_reset.swap(true, Ordering::Relaxed) {
            self.signal_config();
        }
    }

    /// Whether [`Self::fail`] was called since the last reset.
    pub fn has_failed(&self) -> bool {
        self.needs_reset.load(Ordering::Relaxed)
    }

    /// Changes with every change of the configuration.
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::Relaxed)
    }

    pub(super) fn config_vector(&self) -> &AtomicU16 {
        &self.config_vector
    }

    pub(super) fn queue_vector(&self, index: u16) -> Option<&AtomicU16> {
        self.queue_vectors.get(usize::from(index))
    }

    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::Relaxed);
        self.needs_reset.store(false, Ordering::Relaxed);
    }
}

/// Reads device-specific configuration out of a structure's bytes.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
    else {
        return;
    };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
