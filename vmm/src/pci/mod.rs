//! PCI: the root with its slots, and what a function must answer.
//!
//! [`root`] dispatches configuration and BAR accesses; a function is anything that implements [`PciFunction`]. Functions
//! know their registers and nothing of buses, ports or memory maps.

pub mod q35;
pub mod root;

pub mod bars;
pub mod config_space;
pub mod msix;

/// A BAR that is decoded at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarRegion {
    /// Which BAR, 0 to 5 (the lower one of a 64-bit pair).
    pub index: u8,
    /// Guest physical address of its first byte.
    pub address: u64,
    /// Size in bytes, a power of two.
    pub size: u64,
}

/// What a write to configuration space changed outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigEffect {
    /// Nothing.
    None,
    /// A BAR moved, appeared or vanished: the root asks [`PciFunction::bars`] again.
    BarsMoved,
}

/// A function in a slot of the root bus. Calls come from vCPU threads, one at a time.
pub trait PciFunction: Send {
    /// Reads `data.len()` (1, 2 or 4) bytes at `offset`, which is naturally aligned and below 4096.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes at a naturally aligned `offset` below 4096.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect;
    /// The BARs decoded now: none while memory decoding is off in the command register.
    fn bars(&self) -> Vec<BarRegion>;
    /// Reads 1 to 8 bytes; `offset + data.len()` is within the BAR.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes 1 to 8 bytes; `offset + data.len()` is within the BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);
    /// Back to the state at power-on; called while no vCPU runs.
    fn reset(&mut self);
}
