//! A disk as the transport sees it.

use std::io;
use std::sync::Arc;

use super::metrics::BlockCounters;
use super::request::{Limits, SECTOR, SERIAL_LEN};
use super::resize::{Resizer, Size};
use super::worker::{BlockWorker, SEGMENTS_MAX};
use crate::config::RateLimits;
use crate::devices::virtio::device::{
    ActivateError, Activation, ActiveQueue, DeviceKind, VirtioDevice, feature, read_config_bytes,
};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Worker;
use crate::disk::{Access, Blocks, DiskBackend};
use crate::metrics::Counter;
use crate::rate_limit::Clock;

/// Requests the driver can have queued.
const QUEUE_SIZE: u16 = 256;
/// Most sectors of one discard or write-zeroes request: 1 GiB, so that one request does not keep others waiting long.
const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// Feature bits (virtio 1.3 §5.2.3).
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const MULTI_QUEUE: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// What a disk is to be.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// Name in messages.
    pub id: String,
    /// Serial number; what is beyond 20 bytes is cut off.
    pub serial: String,
    /// What the guest may do.
    pub access: Access,
    /// Number of queues, at least one; all are served by the same thread.
    pub queues: u16,
    /// How much the guest may ask for.
    pub limits: RateLimits,
}

/// A virtio disk.
pub struct Block {
    features: u64,
    queue_sizes: Vec<u16>,
    config: [u8; 60],
    size: Arc<Size>,
    worker: Worker,
    counters: Arc<BlockCounters>,
}

impl Block {
    /// An idle disk over `backend`.
    pub fn new(config: &BlockConfig, backend: Box<dyn DiskBackend>) -> io::Result<Self> {
        let blocks = backend.blocks();
        let block = u64::from(blocks.logical);
        let size = backend.size() / block * block;
        let queues = config.queues.max(1);
        let mut features = feature::COMMON | SEG_MAX | BLOCK_SIZE | FLUSH | TOPOLOGY;
        features |= match config.access {
            Access::ReadOnly => READ_ONLY,
            Access::ReadWrite => DISCARD | WRITE_ZEROES,
        };
        if queues > 1 {
            features |= MULTI_QUEUE;
        }
        let counters = Arc::new(BlockCounters::new(&config.id));
        let limits = Limits {
            size,
            access: config.access,
            block,
        };
        let throttled = counters.throttled.clone();
        let throttle = Throttle::new(&config.limits, Clock::monotonic(), throttled)?;
        let size = Size::new(limits.size)?;
        let worker = BlockWorker::new(
            backend,
            limits,
            size.clone(),
            throttle,
            serial(&config.serial),
            counters.clone(),
        );
        Ok(Self {
            features,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            config: config_bytes(blocks, queues),
            size,
            worker: Worker::spawn(&format!("disk-{}", config.id), worker)?,
            counters,
        })
    }
}

impl Block {
    /// The way to let it grow.
    pub fn resizer(&self) -> Resizer {
        Resizer {
            size: self.size.clone(),
            bell: self.worker.bell(),
        }
    }
}

fn serial(text: &str) -> [u8; SERIAL_LEN] {
    let mut serial = [0; SERIAL_LEN];
    for (to, from) in serial.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    serial
}

/// `struct virtio_blk_config` (virtio 1.3 §5.2.4) without the capacity, which may change.
fn config_bytes(blocks: Blocks, queues: u16) -> [u8; 60] {
    let logical = blocks.logical;
    let physical = blocks.physical.max(logical);
    // A best size that is not made of whole physical blocks is none.
    let optimal = match blocks.optimal.is_multiple_of(physical) {
        true => blocks.optimal / logical,
        false => 0,
    };
    let discard = blocks.discard.max(logical);
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    // Besides data, a chain has the header and the status.
    put(12, &(SEGMENTS_MAX as u32 - 2).to_le_bytes());
    put(20, &logical.to_le_bytes());
    put(24, &[(physical / logical).ilog2() as u8]);
    let least = u16::try_from(physical / logical).unwrap_or(0);
    put(26, &least.to_le_bytes());
    put(28, &optimal.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &(discard / SECTOR as u32).to_le_bytes());
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    config
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config;
        config[..8].copy_from_slice(&(self.size.get() / SECTOR).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        self.worker.start(activation)
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.worker.stop()
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        self.counters.list()
    }
}
