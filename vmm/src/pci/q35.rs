//! Who the platform says it is where firmware for QEMU's Q35 runs: Intel's 82Q35 host bridge in slot 0 and the ICH9's
//! bridge to the ISA bus in slot 31 (Intel 316966 §5.1, 316972 §13.1), as far as OVMF looks at them.
//!
//! The host bridge decodes configuration space where its PCIEXBAR says, so [`Q35Memory`] looks there first and sends the
//! rest to the BARs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config_space::{ConfigSpace, Identity};
use super::root::PciRoot;
use super::{BarRegion, ConfigEffect, PciFunction};
use crate::arch::x86_64::layout;
use crate::bus::SharedDevice;

const INTEL: u16 = 0x8086;
const Q35_HOST_BRIDGE: u16 = 0x29c0;
const ICH9_LPC: u16 = 0x2918;
/// As QEMU's machines have it, which is how guests know them.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_ENABLE: u64 = 1;
/// A base of 256 MiB granularity, and the enable bit; the length stays at 256 buses.
const PCIEXBAR_WRITABLE: u64 = 0xf_f000_0001;
/// Programmable attribute maps: how the legacy BIOS area is decoded. Ours is always RAM.
const PAM: (u16, usize) = (0x90, 7);

const COMMAND: u16 = 0x04;
/// It decodes ports: without that bit OVMF does not look for COM1 behind it.
const COMMAND_AS_MADE: [u8; 2] = [0b111, 0];
const PMBASE: u16 = 0x40;
const ACPI_CNTL: u16 = 0x44;
/// Decoding is on. Both registers are read-only, so firmware finds them configured.
const ACPI_ENABLE: u8 = 1 << 7;
const IO_SPACE: u32 = 1;
const PIRQ: [u16; 2] = [0x60, 0x68];
const RCBA: u16 = 0xf0;
const RCBA_WRITABLE: u32 = 0xffff_c001;

/// Where configuration space is, as the guest has set it.
#[derive(Debug, Clone, Default)]
pub struct EcamPlace(Arc<AtomicU64>);

impl EcamPlace {
    /// Its address, if it is decoded.
    pub fn get(&self) -> Option<u64> {
        let register = self.0.load(Ordering::Acquire);
        (register & PCIEXBAR_ENABLE != 0).then_some(register & !PCIEXBAR_ENABLE)
    }

    fn set(&self, register: u64) {
        self.0.store(register, Ordering::Release);
    }
}

fn identity(device: u16, class: u32) -> Identity {
    Identity {
        vendor: INTEL,
        device,
        revision: 2,
        class,
        subsystem_vendor: SUBSYSTEM.0,
        subsystem: SUBSYSTEM.1,
    }
}

/// The function in slot 0.
pub struct HostBridge {
    space: ConfigSpace,
    place: EcamPlace,
}

impl HostBridge {
    /// A bridge that tells `place` where configuration space is.
    pub fn new(place: EcamPlace) -> Self {
        let mut space = ConfigSpace::new(identity(Q35_HOST_BRIDGE, 0x06_00_00));
        space.add_register(PCIEXBAR, &[0; 8], &PCIEXBAR_WRITABLE.to_le_bytes());
        space.add_register(PAM.0, &[0; PAM.1], &[0x33; PAM.1]);
        Self { space, place }
    }

    fn update(&self) {
        let at = usize::from(PCIEXBAR);
        let high = u64::from(self.space.u32_at(at + 4)) << 32;
        self.place.set(high | u64::from(self.space.u32_at(at)));
    }
}

/// The function in slot 31.
pub struct IsaBridge {
    space: ConfigSpace,
}

impl IsaBridge {
    /// A bridge whose power management block is at [`layout::PM_PORT`].
    pub fn new() -> Self {
        let mut space = ConfigSpace::new(identity(ICH9_LPC, 0x06_01_00));
        let base = u32::from(layout::PM_PORT) | IO_SPACE;
        space.add_register(COMMAND, &COMMAND_AS_MADE, &COMMAND_AS_MADE);
        space.add_register(PMBASE, &base.to_le_bytes(), &[]);
        space.add_register(ACPI_CNTL, &[ACPI_ENABLE], &[]);
        for pins in PIRQ {
            space.add_register(pins, &[0x80; 4], &[0x8f; 4]);
        }
        space.add_register(RCBA, &[0; 4], &RCBA_WRITABLE.to_le_bytes());
        Self { space }
    }
}

impl Default for IsaBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.space.write(offset, data);
        self.update();
        ConfigEffect::None
    }

    fn bars(&self) -> Vec<BarRegion> {
        vec![]
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        self.space.reset();
        self.update();
    }
}

impl PciFunction for IsaBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.space.write(offset, data);
        ConfigEffect::None
    }

    fn bars(&self) -> Vec<BarRegion> {
        vec![]
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        self.space.reset();
    }
}

/// All physical memory below 4 GiB that PCI may decode, on the memory bus at `start`.
pub struct Q35Memory {
    /// The bus behind it.
    pub root: Arc<PciRoot>,
    /// Where configuration space is in it.
    pub ecam: EcamPlace,
    /// Where it begins.
    pub start: u64,
}

impl Q35Memory {
    /// The address in configuration space, if it is one.
    fn config(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.ecam.get()?)?;
        (offset < layout::FIRMWARE_ECAM_SIZE).then_some(offset)
    }
}

impl SharedDevice for Q35Memory {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.start + offset;
        match self.config(address) {
            Some(register) => self.root.config_read(register, data),
            None => self.root.memory_read(address, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.start + offset;
        match self.config(address) {
            Some(register) => self.root.config_write(register, data),
            None => self.root.memory_write(address, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::metrics::Registry;
    use crate::pci::root::ConfigPorts;
    use crate::vm::ExitSignal;

    #[test]
    fn configuration_space_is_where_the_firmware_puts_it() {
        let ecam = EcamPlace::default();
        let bridge = Box::new(HostBridge::new(ecam.clone()));
        let mut root = PciRoot::with_bridge(bridge, &Registry::default());
        root.plug(31, Box::new(IsaBridge::new())).unwrap();
        let root = Arc::new(root);
        let mut ports = ConfigPorts::new(Arc::clone(&root), ExitSignal::new().unwrap());
        let start = layout::FIRMWARE_LOW_RAM;
        let memory = Q35Memory {
            root: Arc::clone(&root),
            ecam: ecam.clone(),
            start,
        };
        let word = |address: u64| {
            let mut word = [0; 4];
            memory.read(address - start, &mut word);
            u32::from_le_bytes(word)
        };
        assert_eq!(ecam.get(), None);
        assert_eq!(word(0xb000_0000), u32::MAX);
        let mut set = |register: u32, value: u32| {
            ports.write(0, &(1 << 31 | register).to_le_bytes());
            ports.write(4, &value.to_le_bytes());
        };
        set(0x60, 0);
        set(0x64, 0);
        set(0x60, 0xb000_0001);
        assert_eq!(ecam.get(), Some(0xb000_0000));
        assert_eq!(word(0xb000_0000), 0x29c0_8086);
        assert_eq!(word(0xb000_0000 | 31 << 15), 0x2918_8086);
        assert_eq!(word(0xb000_0040 | 31 << 15), 0x601);
        assert_eq!(word(0xb010_0000), u32::MAX, "no other bus");
        set(0x60, 0xe000_0001);
        assert_eq!(word(0xb000_0000), u32::MAX);
        assert_eq!(word(0xe000_0000), 0x29c0_8086);
        root.reset();
        assert_eq!(ecam.get(), None);
    }
}
