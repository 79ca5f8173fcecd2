//! The configuration space of a type 0 function (PCI 3.0 §6): 256 bytes, of which a mask says what the guest may change.
//!
//! Everything a guest may do here is a masked byte write, so there is no access, however odd, that needs special care.
//! What a change *means* (a BAR moved, MSI-X was enabled) is its owner's to find out, by looking afterwards.

use super::BarRegion;
use super::bars::{BarError, MemoryBar};

/// The part of configuration space that exists. The extended part (PCI Express) reads as zero: no capabilities there.
const SIZE: usize = 256;
/// Where capabilities begin: right behind the header.
const FIRST_CAPABILITY: u8 = 0x40;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// Command register: the function answers to its memory BARs.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may read and write guest memory, and send MSIs.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command register: no INTx, which we never send.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Who a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor, as assigned by the PCI-SIG.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass and programming interface, as `0xCCSSPP`.
    pub class: u32,
    /// Vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Number of the subsystem.
    pub subsystem: u16,
}

/// The capabilities do not fit into 192 bytes.
#[derive(Debug, thiserror::Error)]
#[error("no room in configuration space for capability {id:#x} of {len} bytes")]
pub struct NoRoom {
    id: u8,
    len: usize,
}

/// Registers, and what of them the guest may write.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// As built, for reset.
    initial: [u8; SIZE],
    bars: Vec<MemoryBar>,
    /// Where the link to the next capability is to be written.
    last_link: usize,
    next_free: usize,
}

impl ConfigSpace {
    /// A header with neither BARs nor capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            initial: [0; SIZE],
            bars: Vec::new(),
            last_link: CAPABILITY_POINTER,
            next_free: usize::from(FIRST_CAPABILITY),
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision]);
        space.put(0x09, &identity.class.to_le_bytes()[..3]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        space.writable[0x0c] = 0xff; // cache line size, of no effect
        space.writable[INTERRUPT_LINE] = 0xff; // software's scratch byte
        space
    }

    /// Adds a BAR, at `address` already, as firmware would leave it.
    pub fn add_bar(&mut self, bar: MemoryBar, address: u64) -> Result<(), BarError> {
        let at = usize::from(bar.register());
        self.put(at, &bar.encode(address)?.to_le_bytes());
        self.writable[at..at + 8].copy_from_slice(&bar.writable().to_le_bytes());
        self.bars.push(bar);
        Ok(())
    }

    /// A register outside of header and capabilities, with what it holds and the mask of what the guest may change.
    pub fn add_register(&mut self, offset: u16, bytes: &[u8], writable: &[u8]) {
        for (at, byte) in (usize::from(offset)..SIZE).zip(bytes) {
            self.put(at, &[*byte]);
        }
        for (at, mask) in (usize::from(offset)..SIZE).zip(writable) {
            self.writable[at] = *mask;
        }
    }

    /// Appends a capability and says at which offset it is. `body` follows the two bytes of id and link; `writable` is
    /// the mask of what the guest may change in it and may be shorter.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, NoRoom> {
        let at = self.next_free;
        let len = 2 + body.len();
        let end = (at + len).next_multiple_of(4);
        if end > SIZE || writable.len() > body.len() {
            return Err(NoRoom { id, len });
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.put(self.last_link, &[at as u8]);
        let status = self.u16_at(STATUS) | STATUS_CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        self.last_link = at + 1;
        self.next_free = end;
        Ok(at as u8)
    }

    /// Reads; what is beyond the 256 bytes is zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes what the mask lets through.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (byte & mask);
        }
    }

    /// The BARs that are decoded now.
    pub fn bars(&self) -> Vec<BarRegion> {
        if self.u16_at(COMMAND) & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let region = |bar: &MemoryBar| {
            let at = usize::from(bar.register());
            let registers = u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32;
            Some(BarRegion {
                index: bar.index(),
                address: bar.decode(registers)?,
                size: bar.size(),
            })
        };
        self.bars.iter().filter_map(region).collect()
    }

    /// Whether the function may read and write memory and send MSIs.
    pub fn is_bus_master(&self) -> bool {
        self.u16_at(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// The 16-bit register at `offset`.
    pub fn u16_at(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset as u16, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The 32-bit register at `offset`.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset as u16, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Back to how it was built.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.initial[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: u64 = 0xd000_0000;

    fn space() -> (ConfigSpace, u8) {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x0042,
        });
        space
            .add_bar(MemoryBar::new(0, 0x8000).unwrap(), ADDRESS)
            .unwrap();
        space.add_capability(0x09, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(0x11, &[0; 10], &[0x00, 0xc0]).unwrap();
        (space, second)
    }

    #[test]
    fn the_header_says_who_it_is() {
        let (space, _) = space();
        assert_eq!(space.u32_at(0), 0x1042_1af4);
        assert_eq!(space.u32_at(8), 0x0180_0001);
        assert_eq!(space.u32_at(0x2c), 0x0042_1af4);
    }

    #[test]
    fn capabilities_form_a_list_that_ends() {
        let (space, second) = space();
        let mut seen = Vec::new();
        let mut at = space.u16_at(CAPABILITY_POINTER) as u8;
        while at != 0 {
            let header = space.u16_at(usize::from(at));
            seen.push(header as u8);
            assert_eq!(at % 4, 0);
            at = (header >> 8) as u8;
        }
        assert_eq!(seen, [0x09, 0x11]);
        assert_eq!(second, 0x48);
        assert_eq!(space.u16_at(STATUS), STATUS_CAPABILITIES);
    }

    #[test]
    fn a_bar_is_sized_moved_and_decoded_only_when_enabled() {
        let (mut space, _) = space();
        assert_eq!(space.bars(), []);
        space.write(0x10, &u32::MAX.to_le_bytes());
        space.write(0x14, &u32::MAX.to_le_bytes());
        assert_eq!(
            (space.u32_at(0x10), space.u32_at(0x14)),
            (0xffff_8004, 0xffff_ffff)
        );
        space.write(COMMAND as u16, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.bars(), []);
        space.write(0x10, &0xe000_1234_u32.to_le_bytes());
        space.write(0x14, &1_u32.to_le_bytes());
        assert_eq!(
            space.bars(),
            [BarRegion {
                index: 0,
                address: 0x1_e000_0000,
                size: 0x8000
            }]
        );
        space.reset();
        assert_eq!(space.bars(), []);
        space.write(COMMAND as u16, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(
            space.bars(),
            [BarRegion {
                index: 0,
                address: ADDRESS,
                size: 0x8000
            }]
        );
    }

    #[test]
    fn capabilities_that_do_not_fit_are_refused() {
        let (mut space, _) = space();
        assert!(space.add_capability(0x09, &[0; 200], &[]).is_err());
        assert!(space.add_capability(0x09, &[0; 4], &[0; 5]).is_err());
    }

    proptest! {
        #[test]
        fn no_sequence_of_writes_changes_what_is_read_only(
            writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..64)
        ) {
            let (mut space, _) = space();
            let before = space.clone();
            for (offset, data) in &writes {
                space.write(*offset, data);
                for region in space.bars() {
                    prop_assert_eq!(region.address % region.size, 0);
                    prop_assert!(region.address != 0 && region.address.checked_add(region.size).is_some());
                }
                let mut out = vec![0xaa; data.len()];
                space.read(*offset, &mut out);
                if *offset >= 256 {
                    prop_assert!(out.iter().all(|byte| *byte == 0));
                }
            }
            for at in 0..SIZE {
                let read_only = !space.writable[at];
                prop_assert_eq!(space.bytes[at] & read_only, before.bytes[at] & read_only);
            }
            space.reset();
            prop_assert_eq!(space.bytes, before.bytes);
        }
    }
}
