//! A driver made by hand, for tests: rings written byte by byte into guest memory, right or wrong as a test wants them.

use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{
    ActivateError, Activation, ActiveQueue, DeviceKind, VirtioDevice, VirtioInterrupt, feature,
    read_config_bytes,
};
use crate::interrupt::Interrupts;
use crate::interrupt::fake::FakeLinks;
use crate::memory::GuestMemory;
use crate::metrics::Counter;
use crate::pci::msix::Msix;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Two MiB of guest memory from address 0 on. The rings of queue `n` are where [`DriverRing`] puts them; the rest is a test's.
pub(crate) fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap())
}

/// The driver's side of one queue. Descriptor table, available and used ring of queue `n` are at `0x1000 + n * 0x2000`.
pub(crate) struct DriverRing {
    pub(crate) mem: Arc<GuestMemory>,
    pub(crate) size: u16,
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    next_available: u16,
    next_used: u16,
}

impl DriverRing {
    pub(crate) fn new(mem: Arc<GuestMemory>, size: u16) -> Self {
        Self::numbered(mem, size, 0)
    }

    pub(crate) fn numbered(mem: Arc<GuestMemory>, size: u16, number: u64) -> Self {
        let table = 0x1000 + number * 0x2000;
        Self {
            mem,
            size,
            table,
            available: table + 0x1000,
            used: table + 0x1800,
            next_available: 0,
            next_used: 0,
        }
    }

    /// A descriptor of the ring's own table.
    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.raw_descriptor(self.table + 16 * u64::from(index), addr, len, flags, next);
    }

    /// A descriptor anywhere, such as in an indirect table.
    pub(crate) fn raw_descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain that begins at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_available_index(self.next_available.wrapping_add(1));
    }

    pub(crate) fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.mem
            .write_obj(index, GuestAddress(self.available + 2))
            .unwrap();
    }

    /// What the device has given back since the last call: heads and lengths.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.mem.read_obj(GuestAddress(self.used + 2)).unwrap();
        let mut entries = Vec::new();
        while self.next_used != index {
            let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
            let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
            entries.push((head, len));
            self.next_used = self.next_used.wrapping_add(1);
        }
        entries
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) {
        self.mem.write_slice(data, GuestAddress(at)).unwrap();
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mem.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    /// The device's side, from the beginning.
    pub(crate) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.table))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .unwrap();
        queue.set_ready(true);
        queue
    }

    pub(crate) fn active(&self, index: u16) -> ActiveQueue {
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        ActiveQueue {
            index,
            queue: self.queue(),
            kick,
        }
    }
}

/// An interrupt that goes nowhere, for a device with `queues` queues.
pub(crate) fn interrupt(queues: usize) -> Arc<VirtioInterrupt> {
    let interrupts = Arc::new(Interrupts::new(Arc::new(FakeLinks::default())));
    let msix = Msix::new(interrupts, 1).unwrap();
    Arc::new(VirtioInterrupt::new(msix.vectors(), queues))
}

/// An activation of a device with these queues.
pub(crate) fn activation(
    mem: Arc<GuestMemory>,
    features: u64,
    queues: Vec<ActiveQueue>,
) -> Activation {
    let count = queues
        .iter()
        .map(|queue| usize::from(queue.index) + 1)
        .max()
        .unwrap_or(0);
    Activation {
        mem,
        features,
        interrupt: interrupt(count),
        queues,
    }
}

/// A device that does nothing but remember, for tests of the transport.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    active: Vec<ActiveQueue>,
}

/// A feature of the recorder's own.
pub(crate) const RECORDER_FEATURE: u64 = 1 << 5;

impl Recorder {
    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

impl VirtioDevice for Recorder {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        feature::COMMON | RECORDER_FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 64]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3, 4, 5, 6, 7, 8], offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.note(format!("config {offset} {data:?}"));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let queues: Vec<_> = activation
            .queues
            .iter()
            .map(|queue| (queue.index, queue.queue.state().size))
            .collect();
        self.note(format!("activate {:#x} {queues:?}", activation.features));
        self.active = activation.queues;
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        if !self.active.is_empty() {
            self.note("stop".into());
        }
        std::mem::take(&mut self.active)
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        Vec::new()
    }
}

/// One of a device's counters.
pub(crate) fn counter(device: &dyn VirtioDevice, name: &str) -> u64 {
    let counters = device.counters();
    let found = counters.iter().find(|(known, _)| *known == name);
    found.unwrap().1.get()
}
