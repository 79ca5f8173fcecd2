//! A disk whose worker takes its turns when a test says so, over a disk in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::metrics::BlockCounters;
use super::request::Limits;
use super::resize::Size;
use super::worker::BlockWorker;
use crate::config::RateLimits;
use crate::devices::virtio::chain::BrokenQueue;
use crate::devices::virtio::device::{Activation, ActiveQueue};
use crate::devices::virtio::harness::{DriverRing, activation, interrupt};
use crate::devices::virtio::throttle::Throttle;
use crate::disk::Access;
use crate::disk::fake::{FakeDisk, Script};
use crate::memory::GuestMemory;
use crate::rate_limit::Clock;

/// Sectors of the disk.
pub(crate) const SECTORS: u64 = 64;

pub(crate) struct Stepped {
    worker: BlockWorker,
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) queues: Vec<ActiveQueue>,
    counters: Arc<BlockCounters>,
    clock: Arc<AtomicU64>,
    mem: Arc<GuestMemory>,
}

impl Stepped {
    /// With blocks of this size, and limits by a clock that stands still until [`Self::pass`].
    pub(crate) fn new(ring: &DriverRing, read_only: bool, block: u64, limits: &RateLimits) -> Self {
        let (disk, script) = FakeDisk::new(SECTORS as usize * 512);
        let counters = Arc::new(BlockCounters::new("test"));
        let access = if read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let clock = Arc::new(AtomicU64::new(0));
        let hand = Clock::Hand(clock.clone());
        let throttle = Throttle::new(limits, hand, counters.throttled.clone()).unwrap();
        let limits = Limits {
            size: SECTORS * 512,
            access,
            block,
        };
        let mut worker = BlockWorker::new(
            Box::new(disk),
            limits,
            Size::new(limits.size).unwrap(),
            throttle,
            *b"serial-of-the-disk!!",
            counters.clone(),
        );
        let queues = vec![ring.active(0)];
        worker.prepare(&queues);
        Self {
            worker,
            script,
            queues,
            counters,
            clock,
            mem: ring.mem.clone(),
        }
    }

    /// Another queue, served by the same worker.
    pub(crate) fn add(&mut self, ring: &DriverRing) {
        self.queues.push(ring.active(self.queues.len() as u16));
        self.worker.prepare(&self.queues);
    }

    pub(crate) fn script(&self, withhold: bool, short: bool) {
        let mut script = self.script.lock().unwrap();
        script.withhold = withhold;
        script.short = short.then_some(300);
    }

    pub(crate) fn turn(&mut self) -> Result<(), BrokenQueue> {
        self.worker.turn(&mut self.queues, &self.mem, &interrupt(2))
    }

    /// Time passes, and the timer rings if it is due.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed);
        self.worker.throttle().ring();
    }

    /// As after a stop and a start of the device.
    pub(crate) fn restart(&mut self) {
        self.finish();
        self.worker.prepare(&self.queues);
    }

    pub(crate) fn finish(&mut self) {
        let queues = std::mem::take(&mut self.queues);
        let mut activation = Activation {
            queues,
            ..activation(self.mem.clone(), 0, vec![])
        };
        self.worker.drain(&mut activation);
        self.queues = activation.queues;
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.worker.in_flight()
    }

    pub(crate) fn is_untouched(&self) -> bool {
        self.script
            .lock()
            .unwrap()
            .data
            .iter()
            .all(|byte| *byte == 0)
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.counters
            .list()
            .into_iter()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1
            .get()
    }
}
