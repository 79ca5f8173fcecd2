//! MSI-X (PCI 3.0 §6.8.2): a table of messages in a BAR, a mask bit for each, and a pending bit for what was masked.
//!
//! Two sides share it. A vCPU thread writes the table ([`Msix`]); device threads raise vectors ([`MsixVectors::signal`])
//! without a lock. A vector is *open* when nothing masks it. The one race, raising against unmasking, is settled by both
//! sides looking a second time:
//!
//! ```text
//!   signal:  open? ──yes──► write eventfd            unmask:  route; open := true
//!              │no                                              pending.take()? ──yes──► write eventfd
//!              ▼
//!            pending := true;  open now? ──yes──► pending.take()? ──yes──► write eventfd
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::interrupt::{InterruptError, Interrupts, MsiVector};
use crate::metrics::Counter;

/// The capability's id.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;
/// Most vectors a function can have (11 bits).
const VECTORS_MAX: u16 = 2048;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_MASKED: u32 = 1;

/// The vectors as device threads see them.
#[derive(Debug)]
pub struct MsixVectors {
    vectors: Vec<Vector>,
    /// Raised interrupts that could not be delivered because KVM refused the guest's message.
    unroutable: Counter,
}

#[derive(Debug)]
struct Vector {
    msi: MsiVector,
    open: AtomicBool,
    pending: AtomicBool,
}

impl MsixVectors {
    /// Interrupts the guest by `vector`; a number without a vector (such as "none", 0xffff) does nothing.
    pub fn signal(&self, vector: u16) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else {
            return;
        };
        if vector.open.load(Ordering::SeqCst) {
            vector.fire();
            return;
        }
        vector.pending.store(true, Ordering::SeqCst);
        if vector.open.load(Ordering::SeqCst) && vector.pending.swap(false, Ordering::SeqCst) {
            vector.fire();
        }
    }

    /// How many messages of the guest's KVM has refused.
    pub fn unroutable(&self) -> &Counter {
        &self.unroutable
    }
}

impl Vector {
    fn fire(&self) {
        // Fails only when the counter is full, and then the interrupt is raised already.
        let _ = self.msi.eventfd.write(1);
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Address low, address high, data, vector control.
    words: [u32; 4],
}

/// At reset every vector is masked (PCI 3.0 §6.8.2.9).
const RESET_ENTRY: Entry = Entry {
    words: [0, 0, 0, ENTRY_MASKED],
};

/// The table as the guest sees it.
pub struct Msix {
    interrupts: Arc<Interrupts>,
    shared: Arc<MsixVectors>,
    table: Vec<Entry>,
    /// Enabled, not masked as a whole, and allowed to write to memory.
    delivering: bool,
}

impl Msix {
    /// Takes `count` vectors (1 to 2048) from the machine's interrupts.
    pub fn new(interrupts: Arc<Interrupts>, count: u16) -> Result<Self, InterruptError> {
        if count == 0 || count > VECTORS_MAX {
            return Err(InterruptError::NoVectorLeft);
        }
        let mut vectors = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let msi = interrupts.allocate_msi()?;
            vectors.push(Vector {
                msi,
                open: AtomicBool::new(false),
                pending: AtomicBool::new(false),
            });
        }
        let table = vec![RESET_ENTRY; usize::from(count)];
        let shared = Arc::new(MsixVectors {
            vectors,
            unroutable: Counter::default(),
        });
        Ok(Self {
            interrupts,
            shared,
            table,
            delivering: false,
        })
    }

    /// What device threads raise interrupts by.
    pub fn vectors(&self) -> Arc<MsixVectors> {
        self.shared.clone()
    }

    /// The number of vectors.
    pub fn count(&self) -> u16 {
        self.table.len() as u16
    }

    /// The capability's body and the mask of its writable bits, for a table and a pending bit array in BAR `bar`.
    pub fn capability(&self, bar: u8, table_offset: u32, pba_offset: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.count() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pba_offset | u32::from(bar)).to_le_bytes());
        (body, (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes())
    }

    /// Takes over the message control word of the capability.
    pub fn set_control(&mut self, control: u16, bus_master: bool) {
        let delivering =
            control & CONTROL_ENABLE != 0 && control & CONTROL_FUNCTION_MASK == 0 && bus_master;
        if delivering != self.delivering {
            self.delivering = delivering;
            for index in 0..self.table.len() {
                self.settle(index);
            }
        }
    }

    /// Reads the table at an offset within the BAR; what is beyond the table is zero.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let entry = usize::try_from(at / ENTRY_SIZE)
                .ok()
                .and_then(|index| self.table.get(index));
            *byte = entry.map_or(0, |entry| {
                let within = (at % ENTRY_SIZE) as usize;
                entry.words[within / 4].to_le_bytes()[within % 4]
            });
        }
    }

    /// Writes the table: aligned double and quad words only (PCI 3.0 §6.8.2), others are ignored.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Some(index) = usize::try_from(offset / ENTRY_SIZE)
            .ok()
            .filter(|index| *index < self.table.len())
        else {
            return;
        };
        let first = (offset % ENTRY_SIZE) as usize / 4;
        for (word, bytes) in self.table[index].words[first..]
            .iter_mut()
            .zip(data.chunks_exact(4))
        {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        self.table[index].words[3] &= ENTRY_MASKED;
        self.settle(index);
    }

    /// Reads the pending bits.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = 0;
            for bit in 0..8 {
                let index = at
                    .checked_mul(8)
                    .and_then(|first| usize::try_from(first + bit).ok());
                let vector = index.and_then(|index| self.shared.vectors.get(index));
                if vector.is_some_and(|vector| vector.pending.load(Ordering::SeqCst)) {
                    *byte |= 1 << bit;
                }
            }
        }
    }

    /// Everything masked, nothing pending.
    pub fn reset(&mut self) {
        self.delivering = false;
        for index in 0..self.table.len() {
            self.table[index] = RESET_ENTRY;
            self.settle(index);
            self.shared.vectors[index]
                .pending
                .store(false, Ordering::SeqCst);
        }
    }

    /// Makes the vector behave as its entry and the function's control say.
    fn settle(&mut self, index: usize) {
        let vector = &self.shared.vectors[index];
        let [address_lo, address_hi, data, control] = self.table[index].words;
        if !self.delivering || control & ENTRY_MASKED != 0 {
            vector.open.store(false, Ordering::SeqCst);
            return;
        }
        if self
            .interrupts
            .set(vector.msi.gsi, address_lo, address_hi, data)
            .is_err()
        {
            vector.open.store(false, Ordering::SeqCst);
            self.shared.unroutable.count();
            return;
        }
        vector.open.store(true, Ordering::SeqCst);
        if vector.pending.swap(false, Ordering::SeqCst) {
            vector.fire();
        }
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        for vector in &self.shared.vectors {
            vector.open.store(false, Ordering::SeqCst);
            // The machine is going away; a vector that KVM will not give back costs nothing any more.
            let _ = self.interrupts.release_msi(&vector.msi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::fake::FakeLinks;
    use proptest::prelude::*;

    fn msix(count: u16) -> Msix {
        Msix::new(
            Arc::new(Interrupts::new(Arc::new(FakeLinks::default()))),
            count,
        )
        .unwrap()
    }

    fn fired(msix: &Msix, index: usize) -> bool {
        msix.shared.vectors[index].msi.eventfd.read().is_ok()
    }

    fn program(msix: &mut Msix, index: u64, masked: bool) {
        let at = index * ENTRY_SIZE;
        msix.table_write(at, &0xfee0_0000_u64.to_le_bytes());
        msix.table_write(at + 8, &0x41_u32.to_le_bytes());
        msix.table_write(at + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(msix: &Msix) -> u64 {
        let mut bits = [0; 8];
        msix.pba_read(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn a_masked_vector_is_pending_and_fires_once_when_unmasked() {
        let mut msix = msix(3);
        msix.set_control(CONTROL_ENABLE, true);
        program(&mut msix, 1, true);
        msix.vectors().signal(1);
        msix.vectors().signal(1);
        assert_eq!(pending(&msix), 0b10);
        assert!(!fired(&msix, 1));
        msix.table_write(ENTRY_SIZE + 12, &0_u32.to_le_bytes());
        assert!(fired(&msix, 1));
        assert_eq!(pending(&msix), 0);
        msix.vectors().signal(1);
        assert!(fired(&msix, 1) && !fired(&msix, 1));
    }

    #[test]
    fn the_function_mask_and_bus_mastering_hold_all_vectors_back() {
        let mut msix = msix(2);
        program(&mut msix, 0, false);
        for (control, bus_master) in [
            (0, true),
            (CONTROL_ENABLE | CONTROL_FUNCTION_MASK, true),
            (CONTROL_ENABLE, false),
        ] {
            msix.set_control(control, bus_master);
            msix.vectors().signal(0);
            assert!(!fired(&msix, 0));
        }
        msix.set_control(CONTROL_ENABLE, true);
        assert!(fired(&msix, 0));
    }

    #[test]
    fn numbers_without_a_vector_are_ignored() {
        let msix = msix(2);
        msix.vectors().signal(2);
        msix.vectors().signal(0xffff);
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn reset_masks_everything_and_forgets_what_was_pending() {
        let mut msix = msix(2);
        msix.set_control(CONTROL_ENABLE, true);
        program(&mut msix, 0, false);
        msix.vectors().signal(1);
        msix.reset();
        assert_eq!(pending(&msix), 0);
        let mut entry = [0; 16];
        msix.table_read(0, &mut entry);
        assert_eq!(entry[..12], [0; 12]);
        assert_eq!(entry[12], 1);
        msix.vectors().signal(0);
        assert!(!fired(&msix, 0));
    }

    #[test]
    fn dropping_gives_the_vectors_back() {
        let links = Arc::new(FakeLinks::default());
        let interrupts = Arc::new(Interrupts::new(links.clone()));
        let msix = Msix::new(interrupts, 4).unwrap();
        assert_eq!(links.irqs().len(), 4);
        drop(msix);
        assert_eq!(links.irqs().len(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Table(u64, Vec<u8>),
        Control(u16, bool),
        Signal(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..80_u64, prop::collection::vec(any::<u8>(), 0..9))
                .prop_map(|(at, data)| Step::Table(at, data)),
            (0..4_u64, any::<bool>()).prop_map(|(index, masked)| {
                Step::Table(
                    index * ENTRY_SIZE + 12,
                    u32::from(masked).to_le_bytes().to_vec(),
                )
            }),
            (any::<u16>(), any::<bool>())
                .prop_map(|(control, master)| Step::Control(control, master)),
            (0..6_u16).prop_map(Step::Signal),
        ]
    }

    proptest! {
        /// No interrupt is lost: what was raised has been written to the eventfd or is pending; and none is invented.
        #[test]
        fn every_raised_vector_fires_or_stays_pending(steps in prop::collection::vec(step(), 0..64)) {
            let mut msix = msix(4);
            let mut raised = [false; 4];
            for step in steps {
                match step {
                    Step::Table(at, data) => msix.table_write(at, &data),
                    Step::Control(control, master) => msix.set_control(control, master),
                    Step::Signal(index) => {
                        msix.vectors().signal(index);
                        if let Some(slot) = raised.get_mut(usize::from(index)) {
                            *slot = true;
                        }
                    }
                }
                for (index, raised) in raised.iter_mut().enumerate() {
                    let open = msix.shared.vectors[index].open.load(Ordering::SeqCst);
                    let is_pending = pending(&msix) >> index & 1 == 1;
                    let has_fired = fired(&msix, index);
                    prop_assert!(!(open && is_pending), "open and yet pending");
                    prop_assert_eq!(*raised, is_pending || has_fired);
                    *raised = is_pending;
                }
            }
        }
    }
}
