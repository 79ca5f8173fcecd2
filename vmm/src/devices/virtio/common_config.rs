//! The common configuration structure (virtio 1.3 §4.1.4.3): how a driver finds out about a device, agrees on features
//! and says where its queues are.
//!
//! Pure: it remembers what the driver wrote and says what has to happen. Each field is written with its own width at its
//! own offset, 64-bit addresses also in halves; anything else a driver might write is ignored. Reads are bytes of the
//! structure, so every offset and width has an answer.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::device::{NO_VECTOR, VirtioInterrupt, feature};
use crate::memory::GuestMemory;

/// Bytes of the structure, up to and including `queue_reset`.
pub const SIZE: usize = 60;

/// Device status bits (virtio 1.3 §2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It has a driver.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Both sides agree on the features.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The driver has given up.
    pub const FAILED: u8 = 0x80;
}

const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const NUM_QUEUES: usize = 18;
const DEVICE_STATUS: u64 = 20;
const CONFIG_GENERATION: usize = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFF: usize = 30;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it was remembered, or ignored.
    None,
    /// Reset the device.
    Reset,
    /// Start the device.
    Start,
}

/// One queue as the driver has described it; unchecked.
#[derive(Debug, Clone)]
struct QueueSetup {
    size_max: u16,
    size: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl QueueSetup {
    fn new(size_max: u16) -> Self {
        Self {
            size_max,
            size: size_max,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        }
    }
}

/// The driver enabled a queue that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("queue {index} does not lie in guest memory, or is not aligned")]
pub struct BadQueue {
    index: u16,
}

/// The driver's side of the conversation so far.
#[derive(Debug)]
pub struct CommonConfig {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
    vectors: u16,
}

impl CommonConfig {
    /// For a device that offers these features and queues, with `vectors` MSI-X vectors.
    pub fn new(offered: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .map(|size| QueueSetup::new(*size))
                .collect(),
            vectors,
        }
    }

    /// The features both sides agree on.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// The status as the driver has set it.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Back to the beginning of the conversation.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.size_max).collect();
        *self = Self::new(self.offered, &sizes, self.vectors);
    }

    /// The enabled queues, ready to be processed from their beginning, with their indexes.
    pub fn queues(&self, mem: &GuestMemory) -> Result<Vec<(u16, Queue)>, BadQueue> {
        let enabled = (0_u16..)
            .zip(&self.queues)
            .filter(|(_, setup)| setup.enabled);
        enabled
            .map(|(index, setup)| {
                let queue = self.queue(setup).map_err(|_| BadQueue { index })?;
                if setup.driver == 0 || !queue.is_valid(mem) {
                    return Err(BadQueue { index });
                }
                Ok((index, queue))
            })
            .collect()
    }

    fn queue(&self, setup: &QueueSetup) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(setup.size_max)?;
        queue.try_set_size(setup.size)?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc))?;
        queue.try_set_avail_ring_address(GuestAddress(setup.driver))?;
        queue.try_set_used_ring_address(GuestAddress(setup.device))?;
        queue.set_event_idx(self.accepted & feature::RING_EVENT_IDX != 0);
        queue.set_ready(true);
        Ok(queue)
    }

    /// Reads any bytes of the structure.
    pub fn read(&self, offset: u64, data: &mut [u8], interrupt: &VirtioInterrupt) {
        let mut image = [0_u8; SIZE];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let load = |vector: &std::sync::atomic::AtomicU16| {
            vector.load(std::sync::atomic::Ordering::Relaxed)
        };
        put(
            DEVICE_FEATURE_SELECT as usize,
            &self.device_feature_select.to_le_bytes(),
        );
        put(
            DEVICE_FEATURE,
            &half(self.offered, self.device_feature_select).to_le_bytes(),
        );
        put(
            DRIVER_FEATURE_SELECT as usize,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(
            DRIVER_FEATURE as usize,
            &half(self.accepted, self.driver_feature_select).to_le_bytes(),
        );
        put(
            CONFIG_VECTOR as usize,
            &load(interrupt.config_vector()).to_le_bytes(),
        );
        put(NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        let failed = if interrupt.has_failed() {
            status::NEEDS_RESET
        } else {
            0
        };
        put(DEVICE_STATUS as usize, &[self.status | failed]);
        put(CONFIG_GENERATION, &[interrupt.generation()]);
        put(QUEUE_SELECT as usize, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let vector = interrupt
                .queue_vector(self.queue_select)
                .map_or(NO_VECTOR, load);
            put(QUEUE_SIZE as usize, &queue.size.to_le_bytes());
            put(QUEUE_VECTOR as usize, &vector.to_le_bytes());
            put(
                QUEUE_ENABLE as usize,
                &u16::from(queue.enabled).to_le_bytes(),
            );
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(QUEUE_DESC as usize, &queue.desc.to_le_bytes());
            put(QUEUE_DRIVER as usize, &queue.driver.to_le_bytes());
            put(QUEUE_DEVICE as usize, &queue.device.to_le_bytes());
        } else {
            // A size of zero says that there is no such queue.
            put(QUEUE_VECTOR as usize, &NO_VECTOR.to_le_bytes());
        }
        super::device::read_config_bytes(&image, offset, data);
    }

    /// Writes one field.
    pub fn write(&mut self, offset: u64, data: &[u8], interrupt: &VirtioInterrupt) -> Effect {
        match *data {
            [byte] if offset == DEVICE_STATUS => return self.write_status(byte),
            [a, b] => self.write_u16(offset, u16::from_le_bytes([a, b]), interrupt),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                // Only the queue addresses are 64 bits wide; `write_u32` ignores the others' second halves.
                if matches!(offset, QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE) {
                    self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
                }
            }
            _ => {}
        }
        Effect::None
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // The driver adds bits; only a reset takes one away (virtio 1.3 §2.1.1).
        let added = value & !self.status & !status::NEEDS_RESET;
        let mut effect = Effect::None;
        self.status |= added & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if added & status::FEATURES_OK != 0 && self.features_are_acceptable() {
            self.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK != 0 {
            self.status |= status::DRIVER_OK;
            effect = Effect::Start;
        }
        effect
    }

    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0
    }

    fn write_u16(&mut self, offset: u64, value: u16, interrupt: &VirtioInterrupt) {
        use std::sync::atomic::Ordering::Relaxed;
        // A vector that does not exist reads back as "none": that is how the driver learns of it.
        let vector = if value < self.vectors {
            value
        } else {
            NO_VECTOR
        };
        match offset {
            CONFIG_VECTOR => interrupt.config_vector().store(vector, Relaxed),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_VECTOR => {
                if let Some(slot) = interrupt.queue_vector(self.queue_select) {
                    slot.store(vector, Relaxed);
                }
            }
            QUEUE_SIZE => {
                if let Some(queue) = self.queue_being_set_up()
                    && value.is_power_of_two()
                    && value <= queue.size_max
                {
                    queue.size = value;
                }
            }
            QUEUE_ENABLE => {
                if let Some(queue) = self.queue_being_set_up()
                    && value == 1
                {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => {
                if self.status & status::FEATURES_OK == 0 {
                    match self.driver_feature_select {
                        0 => set_low(&mut self.accepted, value),
                        1 => set_high(&mut self.accepted, value),
                        _ => {}
                    }
                }
            }
            _ => {
                let Some(queue) = self.queue_being_set_up() else {
                    return;
                };
                match offset {
                    QUEUE_DESC => set_low(&mut queue.desc, value),
                    0x24 => set_high(&mut queue.desc, value),
                    QUEUE_DRIVER => set_low(&mut queue.driver, value),
                    0x2c => set_high(&mut queue.driver, value),
                    QUEUE_DEVICE => set_low(&mut queue.device, value),
                    0x34 => set_high(&mut queue.device, value),
                    _ => {}
                }
            }
        }
    }

    /// The selected queue, while it may still be described: before it is enabled and before the driver is ready.
    fn queue_being_set_up(&mut self) -> Option<&mut QueueSetup> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| !queue.enabled)
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}
