//! The root bus: slots, the two ways to configuration space, and where BARs are mapped.
//!
//! ```text
//! ports 0xcf8/0xcfc ─┐
//!                    ├─► slot ─► PciFunction::config_*        ─► BarsMoved ─► the map below
//! ECAM ──────────────┘
//! memory windows ────► map: address ─► slot, BAR ─► PciFunction::bar_*
//! ```
//! One bus, single-function devices. What no function answers reads as all-ones. Each function has its own lock, so
//! two vCPUs can be in two functions.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::{BarRegion, ConfigEffect, PciFunction};
use crate::arch::x86_64::layout;
use crate::bus::{BusDevice, SharedDevice};
use crate::control::ExitReason;
use crate::metrics::{Counter, Registry};
use crate::vm::ExitSignal;

/// Device numbers of a bus.
pub const SLOTS: usize = 32;
/// Bytes of configuration space per function (PCI Express).
const FUNCTION_BYTES: u64 = 4096;

type Function = Mutex<Box<dyn PciFunction>>;

/// A BAR where it is now.
#[derive(Debug, Clone, Copy)]
struct Mapped {
    slot: usize,
    region: BarRegion,
}

/// The bus.
pub struct PciRoot {
    slots: [Option<Function>; SLOTS],
    map: RwLock<Vec<Mapped>>,
    unanswered: Counter,
}

/// The slot does not exist or is taken.
#[derive(Debug, thiserror::Error)]
#[error("PCI slot {slot} does not exist or is taken")]
pub struct SlotError {
    slot: u8,
}

fn locked(function: &Function) -> MutexGuard<'_, Box<dyn PciFunction>> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciRoot {
    /// A bus with a host bridge in slot 0.
    pub fn new(metrics: &Registry) -> Self {
        Self::with_bridge(Box::new(HostBridge), metrics)
    }

    /// A bus with this host bridge in slot 0.
    pub fn with_bridge(bridge: Box<dyn PciFunction>, metrics: &Registry) -> Self {
        let mut slots: [Option<Function>; SLOTS] = std::array::from_fn(|_| None);
        slots[0] = Some(Mutex::new(bridge));
        Self {
            slots,
            map: RwLock::default(),
            unanswered: metrics.counter("pci_unanswered_accesses_total"),
        }
    }

    /// Puts a function into a slot, while building.
    pub fn plug(&mut self, slot: u8, function: Box<dyn PciFunction>) -> Result<(), SlotError> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(place @ None) => *place = Some(Mutex::new(function)),
            _ => return Err(SlotError { slot }),
        }
        self.remap(usize::from(slot));
        Ok(())
    }

    /// All functions back to power-on; called while no vCPU runs.
    pub fn reset(&self) {
        for (slot, function) in self.slots.iter().enumerate() {
            if let Some(function) = function {
                locked(function).reset();
                self.remap(slot);
            }
        }
    }

    /// `address` counts from the beginning of bus 0's configuration space, as in the ECAM.
    fn config(&self, address: u64, len: usize) -> Option<(usize, u16)> {
        let (bus, slot, function) = (
            address >> 20,
            (address >> 15 & 0x1f) as usize,
            address >> 12 & 7,
        );
        let offset = (address % FUNCTION_BYTES) as u16;
        let natural = matches!(len, 1 | 2 | 4) && usize::from(offset) % len == 0;
        let there = bus == 0 && function == 0 && self.slots.get(slot).is_some_and(Option::is_some);
        (natural && there).then_some((slot, offset))
    }

    /// Reads at `address` of configuration space.
    pub(super) fn config_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.config(address, data.len()) {
            Some((slot, offset)) => {
                if let Some(Some(function)) = self.slots.get(slot) {
                    locked(function).config_read(offset, data);
                }
            }
            None => self.unanswered.count(),
        }
    }

    /// Writes at `address` of configuration space.
    pub(super) fn config_write(&self, address: u64, data: &[u8]) {
        let Some((slot, offset)) = self.config(address, data.len()) else {
            return self.unanswered.count();
        };
        if let Some(Some(function)) = self.slots.get(slot) {
            let effect = locked(function).config_write(offset, data);
            if effect == ConfigEffect::BarsMoved {
                self.remap(slot);
            }
        }
    }

    /// Asks a function anew where its BARs are. Takes the function's lock, then the map's.
    fn remap(&self, slot: usize) {
        let Some(Some(function)) = self.slots.get(slot) else {
            return;
        };
        let function = locked(function);
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.retain(|mapped| mapped.slot != slot);
        map.extend(
            function
                .bars()
                .into_iter()
                .map(|region| Mapped { slot, region }),
        );
    }

    /// The BAR that decodes all of `len` bytes at `address`; where a guest has put two over each other, the older one.
    fn bar(&self, address: u64, len: usize) -> Option<(&Function, u8, u64)> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().find_map(|Mapped { slot, region }| {
            let offset = address.checked_sub(region.address)?;
            let inside = offset.checked_add(len as u64)? <= region.size;
            let function = self.slots.get(*slot)?.as_ref()?;
            inside.then_some((function, region.index, offset))
        })
    }

    /// The smallest range that contains all BARs decoded within `space`.
    pub fn decoded(&self, space: Range<u64>) -> Option<Range<u64>> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let ends = |mapped: &Mapped| {
            let end = mapped.region.address.checked_add(mapped.region.size)?;
            Some(mapped.region.address..end)
        };
        map.iter()
            .filter_map(ends)
            .filter(|bar| space.start <= bar.start && bar.end <= space.end)
            .reduce(|all, bar| all.start.min(bar.start)..all.end.max(bar.end))
    }

    /// Reads from the BAR at `address`.
    pub(super) fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.bar(address, data.len()) {
            Some((function, bar, offset)) => locked(function).bar_read(bar, offset, data),
            None => self.unanswered.count(),
        }
    }

    /// Writes to the BAR at `address`.
    pub(super) fn memory_write(&self, address: u64, data: &[u8]) {
        match self.bar(address, data.len()) {
            Some((function, bar, offset)) => locked(function).bar_write(bar, offset, data),
            None => self.unanswered.count(),
        }
    }
}

/// The ECAM, on the memory bus at [`layout::ECAM`].
pub struct Ecam(pub Arc<PciRoot>);

impl SharedDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.config_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.config_write(offset, data);
    }
}

/// A PCI memory window, on the memory bus at `start`.
pub struct MemoryWindow {
    /// The bus behind it.
    pub root: Arc<PciRoot>,
    /// Where it begins.
    pub start: u64,
}

impl SharedDevice for MemoryWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.root.memory_read(self.start + offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.root.memory_write(self.start + offset, data);
    }
}

/// Ports [`layout::PCI_CONFIG_PORT`] to +7: address and data (PCI 3.0 §3.2.2.3.2), and the reset register between them.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    exit: ExitSignal,
    address: u32,
}

const ENABLE: u32 = 1 << 31;
const RESET_OFFSET: u64 = (layout::RESET_PORT - layout::PCI_CONFIG_PORT) as u64;
/// Bit 2 of the reset register: reset the CPU.
const RESET_CPU: u8 = 1 << 2;

impl ConfigPorts {
    /// Ports that configure `root` and reset by `exit`.
    pub fn new(root: Arc<PciRoot>, exit: ExitSignal) -> Self {
        Self {
            root,
            exit,
            address: 0,
        }
    }

    fn target(&self, offset: u64) -> Option<u64> {
        let enabled = self.address & ENABLE != 0;
        let register = u64::from(self.address & 0xfc) + (offset - 4);
        (enabled && offset >= 4).then_some(u64::from(self.address >> 8 & 0xffff) << 12 | register)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset < 4 {
            data.fill(0xff);
            match (offset, data) {
                (0, data @ [_, _, _, _]) => data.copy_from_slice(&self.address.to_le_bytes()),
                (RESET_OFFSET, [value]) => *value = 0,
                _ => {}
            }
        } else if let Some(target) = self.target(offset) {
            self.root.config_read(target, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset < 4 {
            match (offset, data) {
                (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]),
                (RESET_OFFSET, [value]) if value & RESET_CPU != 0 => {
                    self.exit.end(ExitReason::GuestReset)
                }
                _ => {}
            }
        } else if let Some(target) = self.target(offset) {
            self.root.config_write(target, data);
        }
    }
}

/// The function in slot 0: identity and class, nothing else.
struct HostBridge;

impl HostBridge {
    /// Red Hat, generic PCI Express host bridge; class 0600.
    const HEADER: [u8; 16] = [
        0x36, 0x1b, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0x00, 0x06, 0, 0, 0, 0,
    ];
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = Self::HEADER.get(at).copied().unwrap_or(0);
        }
    }

    fn config_write(&mut self, _offset: u16, _data: &[u8]) -> ConfigEffect {
        ConfigEffect::None
    }

    fn bars(&self) -> Vec<BarRegion> {
        vec![]
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A function with one 4 KiB BAR whose address is the dword at 0x10, decoded if bit 1 of the byte at 4 is set.
    #[derive(Default)]
    struct Toy {
        command: u8,
        bar: u32,
        cell: u8,
    }

    impl PciFunction for Toy {
        fn config_read(&mut self, offset: u16, data: &mut [u8]) {
            assert!(
                usize::from(offset) + data.len() <= 4096 && usize::from(offset) % data.len() == 0
            );
            data.fill(offset as u8);
        }
        fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
            assert!(
                usize::from(offset) + data.len() <= 4096 && usize::from(offset) % data.len() == 0
            );
            match (offset, data) {
                (4, [command, ..]) => self.command = *command,
                (0x10, &[a, b, c, d]) => self.bar = u32::from_le_bytes([a, b, c, d]),
                _ => return ConfigEffect::None,
            }
            ConfigEffect::BarsMoved
        }
        fn bars(&self) -> Vec<BarRegion> {
            let region = BarRegion {
                index: 0,
                address: u64::from(self.bar),
                size: 4096,
            };
            if self.command & 2 != 0 {
                vec![region]
            } else {
                vec![]
            }
        }
        fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
            assert!(bar == 0 && offset + data.len() as u64 <= 4096);
            data.fill(self.cell);
        }
        fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
            assert!(bar == 0 && offset + data.len() as u64 <= 4096);
            self.cell = data.first().copied().unwrap_or(0);
        }
        fn reset(&mut self) {
            *self = Self::default();
        }
    }

    fn bus() -> (Arc<PciRoot>, ConfigPorts, ExitSignal) {
        let mut root = PciRoot::new(&Registry::default());
        root.plug(1, Box::new(Toy::default())).unwrap();
        root.plug(2, Box::new(Toy::default())).unwrap();
        assert!(root.plug(2, Box::new(Toy::default())).is_err());
        assert!(root.plug(32, Box::new(Toy::default())).is_err());
        let (root, exit) = (Arc::new(root), ExitSignal::new().unwrap());
        (
            Arc::clone(&root),
            ConfigPorts::new(root, exit.clone()),
            exit,
        )
    }

    fn ecam(slot: u64, offset: u64) -> u64 {
        slot << 15 | offset
    }

    #[test]
    fn both_ways_to_configuration_space_meet() {
        let (root, mut ports, _) = bus();
        let mut data = [0; 4];
        Ecam(Arc::clone(&root)).read(0, &mut data);
        assert_eq!(data, [0x36, 0x1b, 0x08, 0x00]);
        let mut data = [0; 2];
        ports.write(0, &(ENABLE | 8).to_le_bytes());
        ports.read(6, &mut data);
        assert_eq!(data, [0x00, 0x06], "the class of the host bridge");
        ports.write(0, &(ENABLE | 1 << 11 | 0x40).to_le_bytes());
        ports.read(4, &mut data);
        assert_eq!(data, [0x40; 2]);
        let mut latched = [0; 4];
        ports.read(0, &mut latched);
        assert_eq!(u32::from_le_bytes(latched), ENABLE | 1 << 11 | 0x40);
    }

    #[test]
    fn empty_slots_other_buses_and_other_functions_read_as_all_ones() {
        let (root, _, _) = bus();
        for address in [ecam(3, 0), ecam(1, 0) + 4096, ecam(1, 0) + (1 << 20)] {
            let mut data = [0; 4];
            root.config_read(address, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        assert_eq!(root.unanswered.get(), 3);
    }

    #[test]
    fn bars_follow_the_guest() {
        let (root, _, _) = bus();
        let window = MemoryWindow {
            root: Arc::clone(&root),
            start: layout::MMIO32,
        };
        let read = |offset| {
            let mut data = [0];
            window.read(offset, &mut data);
            data[0]
        };
        root.config_write(
            ecam(1, 0x10),
            &(layout::MMIO32 as u32 + 0x1000).to_le_bytes(),
        );
        window.write(0x1000, &[7]);
        assert_eq!(read(0x1000), 0xff, "not decoded yet");
        root.config_write(ecam(1, 4), &[2]);
        window.write(0x1000, &[7]);
        assert_eq!(read(0x1fff), 7);
        root.config_write(
            ecam(1, 0x10),
            &(layout::MMIO32 as u32 + 0x5000).to_le_bytes(),
        );
        assert_eq!(read(0x1000), 0xff);
        assert_eq!(read(0x5000), 7);
        let here = layout::MMIO32 + 0x5000..layout::MMIO32 + 0x6000;
        assert_eq!(root.decoded(0..1 << 32), Some(here.clone()));
        assert_eq!(root.decoded(0..here.end - 1), None);
        root.reset();
        assert_eq!(read(0x5000), 0xff);
    }

    #[test]
    fn the_reset_register_resets_and_is_not_the_address_register() {
        let (_, mut ports, exit) = bus();
        ports.write(1, &[0x02]);
        assert!(!exit.is_set());
        ports.write(1, &[0x06]);
        assert_eq!(exit.reason(), Some(ExitReason::GuestReset));
    }

    proptest! {
        #[test]
        fn any_access_is_answered(
            accesses in prop::collection::vec(
                (0u8..6, any::<u32>(), prop::collection::vec(any::<u8>(), 1..9)), 0..80),
        ) {
            let (root, mut ports, _) = bus();
            let ecam = Ecam(Arc::clone(&root));
            let window = MemoryWindow { root, start: layout::MMIO32 };
            for (kind, at, mut data) in accesses {
                let (near, port) = (u64::from(at % (4 << 15)), u64::from(at % 8));
                let port_len = data.len().min(8 - port as usize);
                match kind {
                    0 => ecam.read(near, &mut data),
                    1 => ecam.write(near, &data),
                    2 => ports.read(port, &mut data[..port_len]),
                    3 => ports.write(port, &data[..port_len]),
                    4 => window.read(u64::from(at), &mut data),
                    _ => window.write(u64::from(at), &data),
                }
            }
        }
    }
}
