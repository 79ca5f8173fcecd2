//! A disk driven by hand-made rings: its worker step by step over a disk in memory, and the whole device over a file.

use std::time::{Duration, Instant};

use super::device::{Block, BlockConfig};
use super::stepping::Stepped;
use crate::config::RateLimits;
use crate::devices::virtio::chain::BrokenQueue;
use crate::devices::virtio::device::{VirtioDevice, feature};
use crate::devices::virtio::harness::{DriverRing, NEXT, WRITE, activation, counter, memory};
use crate::disk::qcow2::Format;
use crate::disk::qcow2::crash::empty_image;
use crate::disk::{Access, DiskOp, open, open_as};

pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

pub(super) const HEADER: u64 = 0x8000;
pub(super) const DATA: u64 = 0x10000;
pub(super) const STATUS: u64 = 0xf000;

/// A driver that asks for one thing after the other.
pub(super) struct Bench {
    pub(super) disk: Stepped,
    pub(super) ring: DriverRing,
    next: u16,
}

impl Bench {
    fn new() -> Self {
        Self::limited(512, &RateLimits::default())
    }

    pub(super) fn limited(block: u64, limits: &RateLimits) -> Self {
        let ring = DriverRing::new(memory(), 64);
        Self {
            disk: Stepped::new(&ring, false, block, limits),
            ring,
            next: 0,
        }
    }

    /// A request in the next three descriptors; the one that carries data may be left out.
    pub(super) fn ask(&mut self, kind: u32, sector: u64, len: u32) -> u16 {
        let head = self.next;
        self.next += 3;
        let header_at = HEADER + 16 * u64::from(head);
        self.ring.write(
            header_at,
            &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
        );
        let device_writes = matches!(kind, IN | GET_ID);
        self.ring.descriptor(
            head,
            header_at,
            16,
            NEXT,
            if len > 0 { head + 1 } else { head + 2 },
        );
        self.ring.descriptor(
            head + 1,
            DATA,
            len,
            NEXT | if device_writes { WRITE } else { 0 },
            head + 2,
        );
        self.ring
            .descriptor(head + 2, STATUS + u64::from(head), 1, WRITE, 0);
        self.ring.write(STATUS + u64::from(head), &[0xee]);
        self.ring.offer(head);
        head
    }

    pub(super) fn turn(&mut self) -> Result<(), BrokenQueue> {
        self.disk.turn()
    }

    /// Turns twice, so that what was begun in the first is answered in the second, and gives the statuses.
    pub(super) fn answers(&mut self) -> Vec<(u32, u32, u8)> {
        self.turn().unwrap();
        self.turn().unwrap();
        let used = self.ring.take_used();
        used.into_iter()
            .map(|(head, len)| (head, len, self.ring.bytes(STATUS + u64::from(head), 1)[0]))
            .collect()
    }
}

#[test]
fn what_was_written_is_read_back() {
    let mut bench = Bench::new();
    bench.ring.write(DATA, &[0x5a; 1024]);
    let write = bench.ask(OUT, 3, 1024);
    let flush = bench.ask(FLUSH, 0, 0);
    let mut answers = bench.answers();
    answers.sort();
    assert_eq!(answers, [(write.into(), 1, 0), (flush.into(), 1, 0)]);
    assert_eq!(
        bench.disk.script.lock().unwrap().data[3 * 512..5 * 512],
        [0x5a; 1024]
    );
    bench.ring.write(DATA, &[0; 1024]);
    let read = bench.ask(IN, 4, 1024);
    assert_eq!(bench.answers(), [(read.into(), 1025, 0)]);
    assert_eq!(
        bench.ring.bytes(DATA, 513),
        [vec![0x5a; 512], vec![0]].concat()
    );
    assert_eq!(
        (
            bench.disk.counter("reads_total"),
            bench.disk.counter("write_bytes_total")
        ),
        (1, 1024)
    );
}

#[test]
fn the_serial_number_is_told() {
    let mut bench = Bench::new();
    bench.ask(GET_ID, 0, 20);
    assert_eq!(bench.answers(), [(0, 21, 0)]);
    assert_eq!(bench.ring.bytes(DATA, 20), b"serial-of-the-disk!!");
}

#[test]
fn refused_requests_are_answered_and_the_queue_goes_on() {
    let mut bench = Bench::new();
    bench.ask(IN, 64, 512);
    bench.ask(99, 0, 0);
    bench.ask(IN, 0, 512);
    assert_eq!(bench.answers(), [(0, 1, 1), (3, 1, 2), (6, 513, 0)]);
    assert_eq!(bench.disk.counter("refused_requests_total"), 2);
}

#[test]
fn a_request_that_was_done_in_parts_is_continued() {
    let mut bench = Bench::new();
    bench.disk.script.lock().unwrap().short = Some(700);
    bench.ring.write(DATA, &[9; 2048]);
    bench.ask(OUT, 0, 2048);
    for _ in 0..4 {
        bench.turn().unwrap();
    }
    assert_eq!(bench.ring.take_used(), [(0, 1)]);
    let script = bench.disk.script.lock().unwrap();
    assert_eq!(script.data[..2048], [9; 2048]);
    assert_eq!(script.seen[2], DiskOp::Write { offset: 1400 });
}

#[test]
fn errors_of_the_host_become_errors_of_the_disk() {
    let mut bench = Bench::new();
    bench
        .disk
        .script
        .lock()
        .unwrap()
        .errors
        .extend([libc::EIO, libc::ENOSPC]);
    bench.ask(IN, 0, 512);
    bench.ask(OUT, 0, 512);
    bench.ask(OUT, 0, 512);
    assert_eq!(
        bench
            .answers()
            .iter()
            .map(|(_, _, status)| *status)
            .collect::<Vec<_>>(),
        [1, 1, 0]
    );
    assert_eq!(bench.disk.counter("host_errors_total"), 2);
}

#[test]
fn a_volume_that_shrank_is_an_error_and_no_endless_loop() {
    let mut bench = Bench::new();
    bench.disk.script.lock().unwrap().data.truncate(512);
    bench.ask(IN, 0, 1024);
    bench.turn().unwrap();
    assert_eq!(bench.answers(), [(0, 513, 1)]);
}

#[test]
fn zeroes_are_written_as_a_hole_where_a_range_cannot_be_zeroed() {
    let mut bench = Bench::new();
    bench
        .disk
        .script
        .lock()
        .unwrap()
        .errors
        .extend([libc::EOPNOTSUPP, libc::EOPNOTSUPP]);
    bench.ring.write(
        DATA,
        &[&1_u64.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 4]].concat(),
    );
    bench.ask(WRITE_ZEROES, 0, 16);
    bench.turn().unwrap();
    bench.turn().unwrap();
    assert_eq!(bench.answers(), [(0, 1, 2)], "neither can be done");
    let zeroes = |unmap| DiskOp::WriteZeroes {
        offset: 512,
        len: 1024,
        unmap,
    };
    assert_eq!(
        bench.disk.script.lock().unwrap().seen,
        [zeroes(false), zeroes(true)]
    );
}

#[test]
fn a_broken_chain_stops_the_queue_behind_what_came_before_it() {
    let mut bench = Bench::new();
    bench.disk.script.lock().unwrap().withhold = true;
    bench.ask(IN, 0, 512);
    bench.ring.descriptor(40, HEADER, 16, NEXT, 40);
    bench.ring.offer(40);
    assert_eq!(bench.turn(), Err(BrokenQueue::Endless));
    assert_eq!(bench.ring.take_used(), []);
    bench.disk.finish();
    assert_eq!(bench.ring.take_used(), [(0, 513)]);
}

#[test]
fn a_head_offered_again_and_again_fills_the_slots_and_no_more() {
    let mut bench = Bench::new();
    bench.disk.script.lock().unwrap().withhold = true;
    let head = bench.ask(IN, 0, 512);
    for round in 0..10 {
        for _ in 0..63 {
            bench.ring.offer(head);
        }
        // A driver may not offer more than the ring holds; this one takes care to look well-behaved.
        match bench.turn() {
            Ok(()) => assert_eq!(bench.disk.script.lock().unwrap().seen.len(), 64),
            Err(error) => {
                assert_eq!((round > 0, error), (true, BrokenQueue::Available));
                break;
            }
        }
    }
    bench.disk.finish();
    assert_eq!(bench.ring.take_used().len(), 64);
}

#[test]
fn queues_share_the_worker_and_answer_each_in_its_own() {
    let mut bench = Bench::new();
    let mut second = DriverRing::numbered(bench.ring.mem.clone(), 8, 1);
    bench.disk.add(&second);
    bench.ask(FLUSH, 0, 0);
    second.descriptor(5, HEADER, 16, NEXT, 6);
    second.descriptor(6, STATUS, 1, WRITE, 0);
    second.offer(5);
    bench.answers();
    assert_eq!(second.take_used(), [(5, 1)]);
    assert_eq!(bench.disk.counter("flushes_total"), 2);
}

pub(super) fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn the_whole_device_writes_to_a_file_and_stops_with_its_queues() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(1 << 20).unwrap();
    let backend = open(named.reopen().unwrap().into(), Access::ReadWrite).unwrap();
    let config = BlockConfig {
        id: "root".into(),
        serial: "s1".into(),
        access: Access::ReadWrite,
        queues: 1,
        limits: RateLimits::default(),
    };
    let mut disk = Block::new(&config, backend).unwrap();
    let mut capacity = [0; 8];
    disk.config_read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);

    let mut ring = DriverRing::new(memory(), 16);
    ring.write(
        HEADER,
        &[&OUT.to_le_bytes()[..], &[0; 4], &7_u64.to_le_bytes()].concat(),
    );
    ring.write(DATA, &[0xab; 4096]);
    ring.descriptor(0, HEADER, 16, NEXT, 1);
    ring.descriptor(1, DATA, 4096, NEXT, 2);
    ring.descriptor(2, STATUS, 1, WRITE, 0);
    let active = ring.active(0);
    let kick = active.kick.clone();
    disk.activate(activation(ring.mem.clone(), feature::COMMON, vec![active]))
        .unwrap();
    for round in 0..3_u16 {
        ring.offer(0);
        kick.write(1).unwrap();
        until(|| ring.take_used() == [(0, 1)]);
        assert_eq!(ring.bytes(STATUS, 1), [0], "round {round}");
    }
    let written = std::fs::read(named.path()).unwrap();
    assert_eq!(written[7 * 512..7 * 512 + 4096], [0xab; 4096]);

    let queues = disk.stop();
    assert_eq!(queues[0].queue.state().next_used, 3);
    ring.offer(0);
    disk.activate(activation(ring.mem.clone(), feature::COMMON, queues))
        .unwrap();
    until(|| !ring.take_used().is_empty());
}

/// The worker has its system call filter here, as in a machine.
#[test]
fn the_whole_device_writes_to_an_image_over_another_one() {
    let mut base = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut base, &[0xb5; 1 << 20]).unwrap();
    let named = tempfile::NamedTempFile::new().unwrap();
    let mut image = empty_image(16, 1 << 20, 4);
    // The header names a file; what is read is the descriptor that was given.
    image[8..16].copy_from_slice(&104_u64.to_be_bytes());
    image[16..20].copy_from_slice(&4_u32.to_be_bytes());
    image[104..108].copy_from_slice(b"/etc");
    std::fs::write(named.path(), image).unwrap();
    let top = named.reopen().unwrap().into();
    let below = vec![(base.into(), Format::Raw)];
    let backend = open_as(top, Access::ReadWrite, Format::Qcow2, below).unwrap();
    let config = BlockConfig {
        id: "image".into(),
        serial: "s1".into(),
        access: Access::ReadWrite,
        queues: 1,
        limits: RateLimits::default(),
    };
    let mut disk = Block::new(&config, backend).unwrap();
    let mut ring = DriverRing::new(memory(), 16);
    let active = ring.active(0);
    let kick = active.kick.clone();
    disk.activate(activation(ring.mem.clone(), feature::COMMON, vec![active]))
        .unwrap();
    let mut ask = |kind: u32, sector: u64, len: u32, byte: u8| {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        ring.write(HEADER, &header);
        let range = [&sector.to_le_bytes()[..], &128_u32.to_le_bytes(), &[0; 4]].concat();
        let data = if kind >= 11 {
            range
        } else {
            vec![byte; len as usize]
        };
        ring.write(DATA, &data);
        ring.descriptor(0, HEADER, 16, NEXT, if len > 0 { 1 } else { 2 });
        ring.descriptor(1, DATA, len, NEXT | if kind == IN { WRITE } else { 0 }, 2);
        ring.descriptor(2, STATUS, 1, WRITE, 0);
        ring.offer(0);
        kick.write(1).unwrap();
        until(|| !ring.take_used().is_empty());
        assert_eq!(ring.bytes(STATUS, 1), [0], "request {kind}");
        ring.bytes(DATA, len as usize)
    };
    assert!(ask(IN, 7, 1024, 0)[..] == [0xb5; 1024]);
    ask(OUT, 8, 4096, 0xab);
    assert!(ask(IN, 15, 1024, 0)[..] == [[0xab; 512], [0xb5; 512]].concat());
    ask(WRITE_ZEROES, 128, 16, 0);
    assert!(ask(IN, 255, 1024, 0)[..] == [[0; 512], [0xb5; 512]].concat());
    // What is discarded does not come back from below.
    ask(OUT, 256, 512, 0xab);
    ask(DISCARD, 256, 16, 0);
    assert!(ask(IN, 255, 1024, 0)[..] == [0; 1024]);
    ask(FLUSH, 0, 0, 0);
    disk.stop();
    assert_eq!(counter(&disk, "host_errors_total"), 0);
    drop(disk);
    let check = std::process::Command::new("qemu-img")
        .arg("check")
        .arg(format!(
            r#"json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":{:?}}}}}"#,
            named.path()
        ))
        .output();
    match check {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => println!("not checked: qemu-img does not run: {error}"),
    }
}

#[test]
fn a_broken_queue_leaves_the_device_failed_until_it_is_reset() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let config = BlockConfig {
        id: "x".into(),
        serial: String::new(),
        access: Access::ReadOnly,
        queues: 1,
        limits: RateLimits::default(),
    };
    let mut disk = Block::new(&config, open(file.into(), Access::ReadOnly).unwrap()).unwrap();
    assert_ne!(disk.features() & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    let mut ring = DriverRing::new(memory(), 16);
    ring.set_available_index(1000);
    let activation = activation(ring.mem.clone(), feature::COMMON, vec![ring.active(0)]);
    let interrupt = activation.interrupt.clone();
    disk.activate(activation).unwrap();
    until(|| interrupt.has_failed());
    assert_eq!(disk.stop().len(), 1);
    assert_eq!(counter(&disk, "guest_errors_total"), 1);
}
