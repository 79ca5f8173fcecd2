//! Base address registers: which part of the guest's address space reaches a function.
//!
//! A BAR answers a write of all ones with its size (PCI 3.0 §6.2.5.1): the address bits below the size are read-only
//! zeroes. That is a mask, so [`super::config_space`] stores BARs like any other register.

/// A 64-bit memory BAR; it takes two registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBar {
    index: u8,
    size: u64,
}

/// A BAR that no device can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BarError {
    /// Registers 0 and 1, 2 and 3, or 4 and 5 form a pair.
    #[error("BAR {index} cannot be the lower half of a 64-bit BAR")]
    Index {
        /// The index asked for.
        index: u8,
    },
    /// A power of two, from one page up, that leaves room for address bits.
    #[error("a BAR cannot be {size} bytes long")]
    Size {
        /// The size asked for.
        size: u64,
    },
    /// The address must be a multiple of the size.
    #[error("a BAR of {size} bytes cannot be at {address:#x}")]
    Address {
        /// The address asked for.
        address: u64,
        /// The BAR's size.
        size: u64,
    },
}

/// Memory, 64 bits wide, not prefetchable (PCI 3.0 §6.2.5.1, table 6-4).
const MEMORY_64: u64 = 0b100;
/// The bits of a memory BAR that are not part of the address.
const FLAGS: u64 = 0xf;
/// A BAR is never smaller than a page: two functions' registers must not share one.
const SIZE_MIN: u64 = 4096;

impl MemoryBar {
    /// A BAR of `size` bytes in registers `index` and `index + 1`.
    pub fn new(index: u8, size: u64) -> Result<Self, BarError> {
        if !matches!(index, 0 | 2 | 4) {
            return Err(BarError::Index { index });
        }
        if !size.is_power_of_two() || !(SIZE_MIN..=1 << 48).contains(&size) {
            return Err(BarError::Size { size });
        }
        Ok(Self { index, size })
    }

    /// The lower register's number.
    pub fn index(self) -> u8 {
        self.index
    }

    /// Bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// The offset of the lower register in configuration space.
    pub fn register(self) -> u8 {
        0x10 + 4 * self.index
    }

    /// What both registers hold for `address`.
    pub fn encode(self, address: u64) -> Result<u64, BarError> {
        if !address.is_multiple_of(self.size) || address.checked_add(self.size).is_none() {
            return Err(BarError::Address {
                address,
                size: self.size,
            });
        }
        Ok(address | MEMORY_64)
    }

    /// The bits a guest can change.
    pub fn writable(self) -> u64 {
        !(self.size - 1)
    }

    /// The address that both registers name, if it is one: not zero, which means "not assigned", and not the top of the
    /// address space, which is what sizing leaves behind.
    pub fn decode(self, registers: u64) -> Option<u64> {
        let address = registers & !FLAGS & self.writable();
        let end = address.checked_add(self.size)?;
        // No x86 processor has more than 52 physical address bits.
        (address != 0 && end <= 1 << 52).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_bars_are_refused() {
        assert_eq!(MemoryBar::new(1, 4096), Err(BarError::Index { index: 1 }));
        assert_eq!(MemoryBar::new(0, 4097), Err(BarError::Size { size: 4097 }));
        assert_eq!(MemoryBar::new(0, 16), Err(BarError::Size { size: 16 }));
        let bar = MemoryBar::new(0, 0x8000).unwrap();
        assert!(bar.encode(0x4000).is_err());
        assert!(bar.encode(!0x7fff).is_err());
    }

    #[test]
    fn addresses_round_trip_and_sizing_leaves_nothing_decoded() {
        let bar = MemoryBar::new(2, 0x8000).unwrap();
        let registers = bar.encode(0x80_0001_0000).unwrap();
        assert_eq!(registers & FLAGS, MEMORY_64);
        assert_eq!(bar.decode(registers), Some(0x80_0001_0000));
        assert_eq!(bar.decode(bar.writable() | MEMORY_64), None);
        assert_eq!(bar.decode(MEMORY_64), None);
        // Only the lower half written while sizing.
        assert_eq!(bar.decode(0xffff_8004), Some(0xffff_8000));
    }
}
