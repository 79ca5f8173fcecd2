//! A disk whose worker takes its turns when a test says so, over a disk in memory.

use std::sync::{Arc, Mutex};

use super::metrics::BlockCounters;
use super::request::Limits;
use super::worker::BlockWorker;
use crate::devices::virtio::chain::BrokenQueue;
use crate::devices::virtio::device::{Activation, ActiveQueue};
use crate::devices::virtio::harness::{DriverRing, activation, interrupt};
use crate::disk::Access;
use crate::disk::fake::{FakeDisk, Script};
use crate::memory::GuestMemory;

/// Sectors of the disk.
pub(crate) const SECTORS: u64 = 64;

pub(crate) struct Stepped {
    worker: BlockWorker,
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) queues: Vec<ActiveQueue>,
    counters: Arc<BlockCounters>,
    mem: Arc<GuestMemory>,
}

impl Stepped {
    pub(crate) fn new(ring: &DriverRing, read_only: bool) -> Self {
        let (disk, script) = FakeDisk::new(SECTORS as usize * 512);
        let counters = Arc::new(BlockCounters::new("test"));
        let access = if read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let limits = Limits {
            size: SECTORS * 512,
            access,
        };
        let mut worker = BlockWorker::new(
            Box::new(disk),
            limits,
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
