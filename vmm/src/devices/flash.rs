//! The flash chip that keeps a guest's UEFI variables: Intel's command set, one byte wide (JEDEC CFI, JESD68; Intel
//! 28F-series datasheets), as QEMU's `cfi.pflash01` is seen by OVMF.
//!
//! ```text
//!           0xff                          0x70, 0x90, program, erase
//!   array ◄────────── status, identity ◄──────────────────────────── array
//!   reads do not exit                     reads exit
//! ```
//! The array is memory that the guest reads through a read-only slot; every write exits. Reads have to exit too while
//! they show something else, so the slot is gone then.
//!
//! # What survives a crash
//! The volume behind the array is written in blocks, and made durable, before the guest can see that the chip is done:
//! when it asks for the status or for the array, and before and after an erasure. So one run of programmed bytes, as
//! OVMF's fault tolerant write makes them, is on the volume before the next one begins; a cut within a run leaves some of
//! its sectors old and some new, which that code is made for. What does not reach the volume is reported in the status
//! register, on standard error, and counted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::metrics::{Counter, Registry};

/// What one erase command erases, and the unit in which the volume is written.
pub const BLOCK: u64 = 4096;

const COMMAND_PROGRAM: [u8; 2] = [0x10, 0x40];
const COMMAND_ERASE: u8 = 0x20;
const COMMAND_CLEAR_STATUS: u8 = 0x50;
const COMMAND_READ_STATUS: u8 = 0x70;
const COMMAND_READ_IDENTITY: u8 = 0x90;
const COMMAND_CONFIRM: u8 = 0xd0;

/// Set by whatever completes. Clearing the status takes it away too, unlike on the real chip: by that OVMF tells QEMU's
/// chip from memory.
const STATUS_READY: u8 = 1 << 7;
const STATUS_ERASE_FAILED: u8 = 1 << 5;
const STATUS_PROGRAM_FAILED: u8 = 1 << 4;
const STATUS_SEQUENCE_WRONG: u8 = STATUS_ERASE_FAILED | STATUS_PROGRAM_FAILED;

/// Intel; the device number is that of QEMU's chip.
const IDENTITY: [u8; 2] = [0x89, 0x18];

/// Whether the guest's reads of the array are served without an exit.
pub trait Window: Send {
    /// Opens or closes it.
    fn open(&mut self, open: bool) -> io::Result<()>;
}

/// Where the array is kept.
pub trait Volume: Send {
    /// Writes whole blocks and returns once they are durable.
    fn write_durably(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl Volume for File {
    fn write_durably(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)?;
        self.sync_data()
    }
}

/// What reads show, and what the next write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Array,
    Status,
    Identity,
    /// The next write is data.
    Program,
    /// The next write confirms.
    Erase,
}

/// Blocks that differ from the volume's.
type Dirty = std::ops::Range<u64>;

/// The chip.
pub struct Flash<W, V> {
    /// The array, at `base`.
    memory: Arc<GuestMemory>,
    base: u64,
    size: u64,
    window: W,
    is_open: bool,
    volume: V,
    mode: Mode,
    status: u8,
    dirty: Dirty,
    programs: Counter,
    erasures: Counter,
    syncs: Counter,
    failures: Counter,
}

impl<W: Window, V: Volume> Flash<W, V> {
    /// A chip over `memory`, which begins at `base` and holds what `volume` holds. Its window is open already.
    pub fn new(
        memory: Arc<GuestMemory>,
        (base, size): (u64, u64),
        window: W,
        volume: V,
        metrics: &Registry,
    ) -> Self {
        let counter = |name: &str| metrics.counter(format!("flash_{name}_total"));
        Self {
            memory,
            base,
            size,
            window,
            is_open: true,
            volume,
            mode: Mode::Array,
            status: STATUS_READY,
            dirty: 0..0,
            programs: counter("programmed_bytes"),
            erasures: counter("erased_blocks"),
            syncs: counter("syncs"),
            failures: counter("volume_errors"),
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        if self.failures.get() == 0 {
            eprintln!("vmm: the flash chip could not {what}: {error}");
        }
        self.failures.count();
    }

    /// Puts what changed onto the volume. What fails stays to be done.
    fn settle(&mut self, failure: u8) {
        if self.dirty.is_empty() {
            return;
        }
        let start = self.dirty.start * BLOCK;
        let mut bytes = vec![0; ((self.dirty.end - self.dirty.start) * BLOCK) as usize];
        let read = self
            .memory
            .read_slice(&mut bytes, GuestAddress(self.base + start))
            .map_err(io::Error::other);
        match read.and_then(|()| self.volume.write_durably(&bytes, start)) {
            Ok(()) => {
                self.syncs.count();
                self.dirty = 0..0;
            }
            Err(error) => {
                self.status |= failure;
                self.failed("write to its volume", &error);
            }
        }
    }

    fn mark(&mut self, block: u64) {
        self.dirty = if self.dirty.is_empty() {
            block..block + 1
        } else {
            self.dirty.start.min(block)..self.dirty.end.max(block + 1)
        };
    }

    /// Reads exit unless they show the array.
    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        let open = mode == Mode::Array;
        if open != self.is_open {
            match self.window.open(open) {
                Ok(()) => self.is_open = open,
                Err(error) => self.failed("switch its window", &error),
            }
        }
    }

    fn program(&mut self, offset: u64, data: &[u8]) {
        let block = offset / BLOCK;
        // Blocks in between would be written as they are; runs are short, so that a jump ends one.
        let near = self.dirty.is_empty()
            || (self.dirty.start.saturating_sub(1)..=self.dirty.end).contains(&block);
        if !near {
            self.settle(STATUS_PROGRAM_FAILED);
        }
        let at = GuestAddress(self.base + offset);
        if self.memory.write_slice(data, at).is_ok() {
            self.programs.add(data.len() as u64);
            self.mark(block);
            self.mark((offset + data.len() as u64 - 1) / BLOCK);
        }
    }

    fn erase(&mut self, offset: u64) {
        self.settle(STATUS_PROGRAM_FAILED);
        let block = offset / BLOCK;
        let at = GuestAddress(self.base + block * BLOCK);
        if self.memory.write_slice(&[0xff; BLOCK as usize], at).is_ok() {
            self.erasures.count();
            self.mark(block);
            self.settle(STATUS_ERASE_FAILED);
        }
    }

    fn command(&mut self, command: u8) {
        if COMMAND_PROGRAM.contains(&command) {
            return self.enter(Mode::Program);
        }
        match command {
            COMMAND_ERASE => self.enter(Mode::Erase),
            COMMAND_CLEAR_STATUS => {
                self.settle(STATUS_PROGRAM_FAILED);
                self.status = 0;
            }
            COMMAND_READ_STATUS => self.enter(Mode::Status),
            COMMAND_READ_IDENTITY => self.enter(Mode::Identity),
            // Of which 0xff is one: what is not known brings the chip back to its array.
            _ => {
                self.settle(STATUS_PROGRAM_FAILED);
                self.enter(Mode::Array);
            }
        }
    }
}

impl<W: Window, V: Volume> BusDevice for Flash<W, V> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.mode {
            Mode::Array => {
                let at = GuestAddress(self.base + offset);
                // An access is within the chip, which is within its memory.
                let _ = self.memory.read_slice(data, at);
            }
            Mode::Identity => {
                for (at, byte) in (offset..).zip(data) {
                    *byte = IDENTITY.get((at & 0xff) as usize).copied().unwrap_or(0);
                }
            }
            Mode::Status | Mode::Program | Mode::Erase => {
                self.settle(STATUS_PROGRAM_FAILED);
                data.fill(self.status);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(first) = data.first() else { return };
        if offset + data.len() as u64 > self.size {
            return;
        }
        match self.mode {
            Mode::Program => {
                self.program(offset, data);
                self.status |= STATUS_READY;
                self.mode = Mode::Status;
            }
            Mode::Erase => {
                if *first == COMMAND_CONFIRM {
                    self.erase(offset);
                } else {
                    self.status |= STATUS_SEQUENCE_WRONG;
                }
                self.status |= STATUS_READY;
                self.mode = Mode::Status;
            }
            Mode::Array | Mode::Status | Mode::Identity => self.command(*first),
        }
    }
}

impl<W, V> Drop for Flash<W, V> {
    fn drop(&mut self) {
        if !self.dirty.is_empty() {
            eprintln!("vmm: the guest ended while it programmed its flash; that run is not kept");
        }
    }
}

/// A chip whose surroundings are remembered.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::sync::Mutex;

    /// What a chip did to its surroundings, in order.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Act {
        /// The window opened or closed.
        Open(bool),
        /// Bytes became durable.
        Write(u64, Vec<u8>),
    }

    /// Remembers the acts; fails to write if told so.
    #[derive(Clone, Default)]
    pub struct Surroundings {
        /// All acts so far.
        pub acts: Arc<Mutex<Vec<Act>>>,
        /// Whether writes fail.
        pub is_broken: Arc<std::sync::atomic::AtomicBool>,
    }

    impl Window for Surroundings {
        fn open(&mut self, open: bool) -> io::Result<()> {
            self.acts.lock().unwrap().push(Act::Open(open));
            Ok(())
        }
    }

    impl Volume for Surroundings {
        fn write_durably(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
            if self.is_broken.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.acts
                .lock()
                .unwrap()
                .push(Act::Write(offset, bytes.to_vec()));
            Ok(())
        }
    }

    /// Where the chip is.
    pub const BASE: u64 = 0xffc0_0000;
    /// Its bytes.
    pub const SIZE: u64 = 8 * BLOCK;

    /// A chip full of zeroes.
    pub fn chip() -> (Flash<Surroundings, Surroundings>, Surroundings, Registry) {
        let ram = crate::machine::RamRange {
            start: BASE,
            size: SIZE,
        };
        let memory = Arc::new(crate::memory::create(&[ram]).unwrap());
        let (around, metrics) = (Surroundings::default(), Registry::default());
        let places = (BASE, SIZE);
        let chip = Flash::new(memory, places, around.clone(), around.clone(), &metrics);
        (chip, around, metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{Act, SIZE, Surroundings, chip};
    use super::*;
    use std::sync::atomic::Ordering;

    const COMMAND_READ_ARRAY: u8 = 0xff;

    type Chip = Flash<Surroundings, Surroundings>;

    fn read(chip: &mut Chip, offset: u64) -> u8 {
        let mut byte = [0xaa];
        chip.read(offset, &mut byte);
        byte[0]
    }

    fn program(chip: &mut Chip, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            chip.write(at, &[0x10]);
            chip.write(at, &[*byte]);
        }
        chip.write(offset, &[0xff]);
    }

    /// What is on the volume after each act that changed it.
    fn volumes(around: &Surroundings) -> Vec<Vec<u8>> {
        let mut now = vec![0; SIZE as usize];
        let mut all = vec![];
        for act in around.acts.lock().unwrap().iter() {
            if let Act::Write(offset, bytes) = act {
                now[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
                all.push(now.clone());
            }
        }
        all
    }

    #[test]
    fn it_is_found_as_flash_and_not_as_memory() {
        let (mut chip, around, _) = chip();
        chip.write(0, &[COMMAND_CLEAR_STATUS]);
        assert_eq!(read(&mut chip, 0), 0, "the array, unchanged");
        chip.write(0, &[COMMAND_READ_STATUS]);
        assert_eq!(read(&mut chip, 0), 0, "the status");
        chip.write(0, &[COMMAND_READ_IDENTITY]);
        assert_eq!([read(&mut chip, 0), read(&mut chip, 1)], IDENTITY);
        chip.write(0, &[COMMAND_READ_ARRAY]);
        assert_eq!(read(&mut chip, 0), 0);
        let acts = around.acts.lock().unwrap();
        assert_eq!(*acts, [Act::Open(false), Act::Open(true)]);
    }

    #[test]
    fn a_run_of_bytes_is_durable_before_the_array_is_seen_again() {
        let (mut chip, around, metrics) = chip();
        program(&mut chip, 3, b"abc");
        let mut block = vec![0; BLOCK as usize];
        block[3..6].copy_from_slice(b"abc");
        let expected = [Act::Open(false), Act::Write(0, block), Act::Open(true)];
        assert_eq!(*around.acts.lock().unwrap(), expected);
        assert_eq!(metrics.read()["flash_programmed_bytes_total"], 3);
        assert_eq!(read(&mut chip, 4), b'b');
    }

    #[test]
    fn the_status_is_told_only_after_the_volume_has_it() {
        let (mut chip, around, _) = chip();
        chip.write(0, &[0x40]);
        chip.write(0, &[7]);
        assert_eq!(volumes(&around).len(), 0);
        assert_eq!(read(&mut chip, 0), STATUS_READY);
        assert_eq!(volumes(&around)[0][0], 7);
    }

    #[test]
    fn erasing_is_a_block_and_needs_its_confirmation() {
        let (mut chip, around, _) = chip();
        chip.write(BLOCK + 5, &[COMMAND_ERASE]);
        chip.write(BLOCK + 5, &[COMMAND_READ_ARRAY]);
        assert_eq!(read(&mut chip, 0), STATUS_READY | STATUS_SEQUENCE_WRONG);
        chip.write(0, &[COMMAND_CLEAR_STATUS]);
        chip.write(BLOCK + 5, &[COMMAND_ERASE]);
        chip.write(BLOCK + 5, &[COMMAND_CONFIRM]);
        assert_eq!(read(&mut chip, 0), STATUS_READY);
        chip.write(0, &[COMMAND_READ_ARRAY]);
        for (offset, value) in [
            (BLOCK - 1, 0),
            (BLOCK, 0xff),
            (2 * BLOCK - 1, 0xff),
            (2 * BLOCK, 0),
        ] {
            assert_eq!(read(&mut chip, offset), value, "{offset:#x}");
        }
        assert_eq!(volumes(&around).len(), 1);
    }

    /// A cut after any act leaves a state that the guest had made: nothing later is there without all that came before.
    #[test]
    fn writes_reach_the_volume_in_the_guests_order() {
        let (mut chip, around, _) = chip();
        program(&mut chip, 5 * BLOCK, b"new record");
        program(&mut chip, 0, b"valid");
        chip.write(3 * BLOCK, &[COMMAND_ERASE]);
        chip.write(3 * BLOCK, &[COMMAND_CONFIRM]);
        program(&mut chip, 3 * BLOCK, b"copy");
        let seen: Vec<_> = volumes(&around)
            .iter()
            .map(|volume| {
                let starts = |at: u64, what: &[u8]| volume[at as usize..].starts_with(what);
                [
                    starts(5 * BLOCK, b"new record"),
                    starts(0, b"valid"),
                    starts(3 * BLOCK + 4, &[0xff]),
                    starts(3 * BLOCK, b"copy"),
                ]
            })
            .collect();
        let expected = [
            [true, false, false, false],
            [true, true, false, false],
            [true, true, true, false],
            [true, true, true, true],
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_volume_that_fails_is_told_counted_and_tried_again() {
        let (mut chip, around, metrics) = chip();
        around.is_broken.store(true, Ordering::Relaxed);
        chip.write(9, &[0x10]);
        chip.write(9, &[1]);
        let failed = STATUS_READY | STATUS_PROGRAM_FAILED;
        assert_eq!(read(&mut chip, 9), failed);
        around.is_broken.store(false, Ordering::Relaxed);
        chip.write(9, &[COMMAND_READ_ARRAY]);
        assert_eq!(volumes(&around)[0][9], 1);
        assert_eq!(metrics.read()["flash_volume_errors_total"], 1);
    }
}
