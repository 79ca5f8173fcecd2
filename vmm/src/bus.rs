//! Port and MMIO dispatch: from an address to the device that decodes it.
//!
//! What nobody decodes reads as all-ones and swallows writes, as on a real bus, and is counted.

use std::sync::{Arc, Mutex, PoisonError};

use crate::metrics::{Counter, Registry};

/// A device on a bus. Offsets are relative to the range it was put at; `data` lies within that range.
pub trait BusDevice: Send {
    /// Fills `data`; never blocks for the outside world.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Like [`BusDevice`], for a device that locks inside, so that vCPUs do not queue up for it.
pub trait SharedDevice: Send + Sync {
    /// Fills `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: BusDevice + ?Sized> SharedDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }
}

struct Range {
    start: u64,
    size: u64,
    device: Arc<dyn SharedDevice>,
}

/// An address space: ports, or physical memory outside RAM. Ranges are put in while building and stay.
pub struct Bus {
    ranges: Vec<Range>,
    unclaimed_reads: Counter,
    unclaimed_writes: Counter,
}

/// Two devices claim the same addresses.
#[derive(Debug, thiserror::Error)]
#[error("the bus range {start:#x}+{size:#x} is empty, overflows or is taken")]
pub struct BusClaimError {
    start: u64,
    size: u64,
}

impl Bus {
    /// An empty bus; `name` prefixes its two counters.
    pub fn new(name: &str, metrics: &Registry) -> Self {
        Self {
            ranges: Vec::new(),
            unclaimed_reads: metrics.counter(format!("{name}_unclaimed_reads_total")),
            unclaimed_writes: metrics.counter(format!("{name}_unclaimed_writes_total")),
        }
    }

    /// Puts `device` at `start`.
    pub fn claim(
        &mut self,
        start: u64,
        size: u64,
        device: Arc<dyn SharedDevice>,
    ) -> Result<(), BusClaimError> {
        let refused = BusClaimError { start, size };
        let Some(last) = size.checked_sub(1).and_then(|span| start.checked_add(span)) else {
            return Err(refused);
        };
        let at = self.ranges.partition_point(|range| range.start < start);
        let clear_below = at
            .checked_sub(1)
            .is_none_or(|below| start - self.ranges[below].start >= self.ranges[below].size);
        let clear_above = self.ranges.get(at).is_none_or(|above| above.start > last);
        if !(clear_below && clear_above) {
            return Err(refused);
        }
        self.ranges.insert(
            at,
            Range {
                start,
                size,
                device,
            },
        );
        Ok(())
    }

    /// A guest reads.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                self.unclaimed_reads.count();
            }
        }
    }

    /// A guest writes.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => self.unclaimed_writes.count(),
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(&dyn SharedDevice, u64)> {
        let below = self
            .ranges
            .partition_point(|range| range.start <= address)
            .checked_sub(1)?;
        let range = self.ranges.get(below)?;
        let offset = address - range.start;
        let end = offset.checked_add(len as u64)?;
        (end <= range.size).then_some((&*range.device, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Remembers the last write and reads as it.
    struct Latch(u8);
    impl BusDevice for Latch {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data.first().copied().unwrap_or(0);
        }
    }

    fn latch() -> Arc<dyn SharedDevice> {
        Arc::new(Mutex::new(Latch(0)))
    }

    #[test]
    fn accesses_reach_the_claiming_device_and_nothing_else() {
        let metrics = Registry::default();
        let mut bus = Bus::new("pio", &metrics);
        bus.claim(0x10, 4, latch()).unwrap();
        bus.write(0x13, &[7]);
        let mut data = [0];
        bus.read(0x10, &mut data);
        assert_eq!(data, [7]);
        let mut across = [0; 2];
        bus.read(0x13, &mut across);
        assert_eq!(
            across, [0xff; 2],
            "an access that leaves the device is nobody's"
        );
        bus.read(0x14, &mut data);
        assert_eq!(data, [0xff]);
        bus.write(0xf, &[1]);
        assert_eq!(metrics.read()["pio_unclaimed_reads_total"], 2);
        assert_eq!(metrics.read()["pio_unclaimed_writes_total"], 1);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let mut bus = Bus::new("mmio", &Registry::default());
        bus.claim(0x100, 0x100, latch()).unwrap();
        for (start, size) in [
            (0x100, 1),
            (0x1ff, 2),
            (0xff, 2),
            (0x80, 0x200),
            (5, 0),
            (u64::MAX, 2),
        ] {
            assert!(
                bus.claim(start, size, latch()).is_err(),
                "{start:#x}+{size:#x}"
            );
        }
        bus.claim(0x200, 1, latch()).unwrap();
        bus.claim(0xff, 1, latch()).unwrap();
    }

    proptest! {
        #[test]
        fn any_access_is_answered(address: u64, len in 0usize..9) {
            let mut bus = Bus::new("mmio", &Registry::default());
            bus.claim(0x1000, 0x1000, latch()).unwrap();
            bus.claim(u64::MAX - 7, 8, latch()).unwrap();
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            bus.write(address, &data);
        }
    }
}
