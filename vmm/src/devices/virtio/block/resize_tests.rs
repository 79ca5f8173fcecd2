//! A disk that grows: idle, in use, parked; and what it refuses.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::device::{Block, BlockConfig};
use super::resize::{ResizeError, Resizer};
use super::tests::{FLUSH, HEADER, IN, STATUS, until};
use crate::config::RateLimits;
use crate::devices::virtio::device::{VirtioDevice, VirtioInterrupt, feature};
use crate::devices::virtio::harness::{DriverRing, NEXT, WRITE, activation, counter, memory};
use crate::disk::qcow2::Format;
use crate::disk::qcow2::crash::empty_image;
use crate::disk::{Access, open, open_as};

const WITHIN: Duration = Duration::from_secs(20);
const CONFIG: u8 = 2;

struct Bench {
    disk: Block,
    ring: DriverRing,
    resizer: Resizer,
}

fn config(limits: RateLimits) -> BlockConfig {
    BlockConfig {
        id: "x".into(),
        serial: String::new(),
        access: Access::ReadWrite,
        queues: 1,
        limits,
    }
}

impl Bench {
    fn new(disk: Block) -> Self {
        let resizer = disk.resizer();
        Self {
            disk,
            ring: DriverRing::new(memory(), 16),
            resizer,
        }
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.disk.config_read(0, &mut bytes);
        u64::from_le_bytes(bytes) * 512
    }

    fn activate(&mut self) -> (Arc<VirtioInterrupt>, Arc<vmm_sys_util::eventfd::EventFd>) {
        let active = self.ring.active(0);
        let kick = active.kick.clone();
        let activation = activation(self.ring.mem.clone(), feature::COMMON, vec![active]);
        let interrupt = activation.interrupt.clone();
        self.disk.activate(activation).unwrap();
        (interrupt, kick)
    }

    fn grow(&self, size: u64) -> Result<u64, ResizeError> {
        self.resizer.resize(size, WITHIN)
    }
}

fn of_file(limits: RateLimits) -> (Bench, File) {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(1 << 20).unwrap();
    let backend = open(named.reopen().unwrap().into(), Access::ReadWrite).unwrap();
    let disk = Block::new(&config(limits), backend).unwrap();
    (Bench::new(disk), named.into_file())
}

#[test]
fn an_idle_disk_grows_and_tells_the_driver_once_there_is_one() {
    let (mut bench, file) = of_file(RateLimits::default());
    file.set_len(2 << 20).unwrap();
    assert_eq!(bench.capacity(), 1 << 20, "not before it is told");
    assert_eq!(bench.grow(2 << 20).unwrap(), 2 << 20);
    assert_eq!(bench.capacity(), 2 << 20);
    let (interrupt, _) = bench.activate();
    until(|| interrupt.take_isr() & CONFIG != 0);
    bench.disk.stop();
    // And only once.
    let (interrupt, _) = bench.activate();
    assert_eq!(bench.grow(2 << 20).unwrap(), 2 << 20);
    assert_eq!(interrupt.take_isr() & CONFIG, 0);
}

#[test]
fn a_disk_in_use_grows_and_what_is_beyond_is_there_at_once() {
    let (mut bench, file) = of_file(RateLimits::default());
    let (interrupt, kick) = bench.activate();
    let header = [&IN.to_le_bytes()[..], &[0; 4], &3000_u64.to_le_bytes()].concat();
    bench.ring.write(HEADER, &header);
    bench.ring.descriptor(0, HEADER, 16, NEXT, 1);
    bench.ring.descriptor(1, 0x10000, 512, NEXT | WRITE, 2);
    bench.ring.descriptor(2, STATUS, 1, WRITE, 0);
    let read = |bench: &mut Bench| {
        bench.ring.offer(0);
        kick.write(1).unwrap();
        until(|| !bench.ring.take_used().is_empty());
        bench.ring.bytes(STATUS, 1)[0]
    };
    assert_eq!(read(&mut bench), 1, "beyond the end");
    let generation = interrupt.generation();
    file.set_len(3 << 20).unwrap();
    bench.grow(2 << 20).unwrap();
    until(|| interrupt.take_isr() & CONFIG != 0);
    assert_ne!(interrupt.generation(), generation);
    assert_eq!(
        bench.capacity(),
        2 << 20,
        "as told, not as long as the file"
    );
    assert_eq!(read(&mut bench), 0);
    // A second time, and after a reset.
    bench.grow(3 << 20).unwrap();
    bench.disk.stop();
    assert_eq!(bench.capacity(), 3 << 20);
}

#[test]
fn what_cannot_be_leaves_the_disk_as_it_was() {
    let (mut bench, file) = of_file(RateLimits::default());
    for active in [false, true] {
        if active {
            bench.activate();
        }
        let smaller = bench.grow((1 << 20) - 512).unwrap_err();
        assert!(matches!(smaller, ResizeError::Smaller { have: 0x10_0000 }));
        let part = bench.grow((1 << 20) + 100).unwrap_err();
        assert!(matches!(part, ResizeError::Blocks { block: 512 }));
        // The volume is not that long.
        let longer = bench.grow(2 << 20).unwrap_err();
        assert!(matches!(longer, ResizeError::Backend(_)));
        let huge = bench.grow(u64::MAX / 512 * 512).unwrap_err();
        assert!(matches!(huge, ResizeError::Backend(_)));
        assert_eq!(bench.capacity(), 1 << 20);
    }
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn a_failed_disk_does_not_answer_and_grows_after_its_reset() {
    let (mut bench, file) = of_file(RateLimits::default());
    file.set_len(2 << 20).unwrap();
    bench.ring.set_available_index(1000);
    let (interrupt, _) = bench.activate();
    until(|| interrupt.has_failed());
    let silent = bench.resizer.resize(2 << 20, Duration::from_millis(20));
    assert!(matches!(silent, Err(ResizeError::Silent)));
    bench.disk.stop();
    assert_eq!(bench.grow(1 << 20).unwrap(), 1 << 20);
    assert_eq!(bench.capacity(), 1 << 20, "nobody wants it any more");
    assert_eq!(bench.grow(2 << 20).unwrap(), 2 << 20);
}

#[test]
fn a_disk_that_waits_for_its_limit_grows_at_once() {
    let limits = RateLimits {
        operations_per_second: Some(1),
        operations_burst: Some(1),
        ..RateLimits::default()
    };
    let (mut bench, file) = of_file(limits);
    let flush = [&FLUSH.to_le_bytes()[..], &[0; 12]].concat();
    bench.ring.write(HEADER, &flush);
    bench.ring.descriptor(0, HEADER, 16, NEXT, 1);
    bench.ring.descriptor(1, STATUS, 1, WRITE, 0);
    for _ in 0..16 {
        bench.ring.offer(0);
    }
    bench.activate();
    until(|| counter(&bench.disk, "throttled_total") > 0);
    file.set_len(2 << 20).unwrap();
    assert_eq!(bench.grow(2 << 20).unwrap(), 2 << 20);
    assert!(counter(&bench.disk, "flushes_total") < 16);
}

/// The worker has its system call filter here, as in a machine.
#[test]
fn an_image_grows_too() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), empty_image(16, 1 << 20, 4)).unwrap();
    let file = named.reopen().unwrap().into();
    let backend = open_as(file, Access::ReadWrite, Format::Qcow2, vec![]).unwrap();
    let disk = Block::new(&config(RateLimits::default()), backend).unwrap();
    let mut bench = Bench::new(disk);
    bench.activate();
    assert_eq!(bench.grow(64 << 20).unwrap(), 64 << 20);
    assert_eq!(bench.capacity(), 64 << 20);
}

#[test]
fn a_resizer_may_outlive_its_disk() {
    let (bench, _file) = of_file(RateLimits::default());
    let resizer = bench.resizer.clone();
    drop(bench);
    let silent = resizer.resize(2 << 20, WITHIN);
    assert!(matches!(silent, Err(ResizeError::Silent)));
}
