//! A disk that may do only so much, and one made of large blocks.

use std::time::{Duration, Instant};

use super::device::{Block, BlockConfig};
use super::tests::{Bench, DATA, FLUSH, HEADER, IN, OUT, STATUS, until};
use crate::config::RateLimits;
use crate::devices::virtio::device::{VirtioDevice, feature};
use crate::devices::virtio::harness::{DriverRing, NEXT, WRITE, activation, counter, memory};
use crate::disk::fake::FakeDisk;
use crate::disk::{Access, Blocks};

const MS: u64 = 1_000_000;

/// So many at once, then one in ten milliseconds.
fn operations(burst: u64) -> RateLimits {
    RateLimits {
        operations_per_second: Some(100),
        operations_burst: Some(burst),
        ..RateLimits::default()
    }
}

fn heads(answers: &[(u32, u32, u8)]) -> Vec<u32> {
    answers.iter().map(|(head, ..)| *head).collect()
}

#[test]
fn beyond_the_burst_requests_wait_in_the_ring_until_the_timer_rings() {
    let mut bench = Bench::limited(512, &operations(2));
    for _ in 0..4 {
        bench.ask(IN, 0, 512);
    }
    assert_eq!(heads(&bench.answers()), [0, 3]);
    assert_eq!(bench.disk.queues[0].queue.state().next_avail, 2);
    // Doorbells and turns without end change nothing; neither does a flush let itself in.
    bench.ask(FLUSH, 0, 0);
    assert_eq!(bench.answers(), []);
    bench.disk.pass(10 * MS - 1);
    assert_eq!(bench.answers(), []);
    bench.disk.pass(1);
    assert_eq!(bench.answers(), [(6, 513, 0)]);
    bench.disk.pass(10 * MS);
    assert_eq!(heads(&bench.answers()), [9]);
    bench.disk.pass(10 * MS);
    assert_eq!(heads(&bench.answers()), [12]);
    assert_eq!(bench.disk.counter("throttled_total"), 3);
    assert_eq!(bench.disk.counter("reads_total"), 4);
}

#[test]
fn bytes_are_counted_in_both_directions_and_flushes_have_none() {
    let limits = RateLimits {
        bytes_per_second: Some(1_000_000),
        bytes_burst: Some(2048),
        ..RateLimits::default()
    };
    let mut bench = Bench::limited(512, &limits);
    bench.ask(OUT, 0, 1024);
    bench.ask(IN, 0, 1024);
    bench.ask(FLUSH, 0, 0);
    bench.ask(IN, 0, 512);
    bench.ask(FLUSH, 0, 0);
    assert_eq!(heads(&bench.answers()), [0, 3, 6]);
    bench.disk.pass(512_000 - 1);
    assert_eq!(bench.answers(), []);
    bench.disk.pass(1);
    assert_eq!(heads(&bench.answers()), [9, 12]);
}

#[test]
fn what_a_waiting_request_asks_for_is_read_when_its_time_comes() {
    let mut bench = Bench::limited(512, &operations(1));
    bench.ask(IN, 0, 512);
    let waiting = bench.ask(OUT, 5, 512);
    assert_eq!(heads(&bench.answers()), [0]);
    bench.ring.write(
        HEADER + 16 * u64::from(waiting) + 8,
        &u64::MAX.to_le_bytes(),
    );
    bench.disk.pass(10 * MS);
    assert_eq!(bench.answers(), [(3, 1, 1)]);
    assert!(bench.disk.is_untouched());
}

#[test]
fn a_reset_does_not_fill_the_bucket() {
    let mut bench = Bench::limited(512, &operations(1));
    bench.ask(IN, 0, 512);
    bench.ask(IN, 0, 512);
    assert_eq!(heads(&bench.answers()), [0]);
    bench.disk.restart();
    assert_eq!(bench.answers(), []);
    bench.disk.pass(10 * MS);
    assert_eq!(heads(&bench.answers()), [3]);
}

#[test]
fn queues_that_share_a_limit_take_turns() {
    let mut bench = Bench::limited(512, &operations(4));
    let mut second = DriverRing::numbered(bench.ring.mem.clone(), 16, 1);
    bench.disk.add(&second);
    second.descriptor(0, HEADER + 0x800, 16, NEXT, 1);
    second.descriptor(1, STATUS + 0x800, 1, WRITE, 0);
    second.write(
        HEADER + 0x800,
        &[&FLUSH.to_le_bytes()[..], &[0; 12]].concat(),
    );
    for _ in 0..8 {
        bench.ask(IN, 0, 512);
        second.offer(0);
    }
    assert_eq!(bench.answers().len(), 2);
    assert_eq!(second.take_used().len(), 2);
    for round in 1..=6 {
        bench.disk.pass(20 * MS);
        // The second one may wait for its half of the time again.
        let first = bench.answers().len();
        bench.disk.pass(0);
        assert_eq!(first + second.take_used().len(), 2, "round {round}");
    }
    assert_eq!(bench.disk.counter("reads_total"), 8);
    assert_eq!(bench.disk.counter("flushes_total"), 8);
}

fn disk_of(blocks: Blocks, size: usize, limits: RateLimits) -> Block {
    let (backend, script) = FakeDisk::new(size);
    script.lock().unwrap().blocks = blocks;
    let config = BlockConfig {
        id: "x".into(),
        serial: String::new(),
        access: Access::ReadWrite,
        queues: 1,
        limits,
    };
    Block::new(&config, Box::new(backend)).unwrap()
}

#[test]
fn a_disk_that_waits_for_its_limit_stops_at_once() {
    let limits = RateLimits {
        operations_per_second: Some(1),
        operations_burst: Some(1),
        ..RateLimits::default()
    };
    let mut disk = disk_of(Blocks::default(), 8192, limits);
    let mut ring = DriverRing::new(memory(), 16);
    ring.write(HEADER, &[&FLUSH.to_le_bytes()[..], &[0; 12]].concat());
    ring.descriptor(0, HEADER, 16, NEXT, 1);
    ring.descriptor(1, STATUS, 1, WRITE, 0);
    let active = ring.active(0);
    let kick = active.kick.clone();
    for _ in 0..10 {
        ring.offer(0);
    }
    disk.activate(activation(ring.mem.clone(), feature::COMMON, vec![active]))
        .unwrap();
    until(|| counter(&disk, "throttled_total") > 0);
    let asked = Instant::now();
    let queues = disk.stop();
    // Nine seconds' worth is still in the ring.
    assert!(asked.elapsed() < Duration::from_secs(5));
    let state = queues[0].queue.state();
    assert_eq!(state.next_avail, state.next_used);
    assert!(state.next_used < 10);
    // It goes on where it was, by the timer alone.
    let done = usize::from(state.next_used);
    disk.activate(activation(ring.mem.clone(), feature::COMMON, queues))
        .unwrap();
    let _ = kick.read();
    let mut seen = ring.take_used().len();
    until(|| {
        seen += ring.take_used().len();
        seen > done
    });
}

fn config(disk: &Block) -> [u8; 60] {
    let mut bytes = [0; 60];
    disk.config_read(0, &mut bytes);
    bytes
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

#[test]
fn the_blocks_of_the_volume_are_the_disk_s() {
    let blocks = Blocks {
        logical: 4096,
        physical: 16384,
        optimal: 1 << 20,
        discard: 65536,
    };
    // A part of a block at the end is no part of the disk.
    let disk = disk_of(blocks, 1024 * 4096 + 512, RateLimits::default());
    assert_ne!(disk.features() & 1 << 10, 0, "VIRTIO_BLK_F_TOPOLOGY");
    let bytes = config(&disk);
    assert_eq!(u64::from_le_bytes(number(&bytes, 0)), 1024 * 8);
    assert_eq!(u32::from_le_bytes(number(&bytes, 20)), 4096);
    assert_eq!(bytes[24..26], [2, 0], "physical block, and no offset");
    assert_eq!(u16::from_le_bytes(number(&bytes, 26)), 4, "smallest size");
    assert_eq!(u32::from_le_bytes(number(&bytes, 28)), 256, "best size");
    assert_eq!(u32::from_le_bytes(number(&bytes, 44)), 128, "discard");

    let bytes = config(&disk_of(Blocks::default(), 8192, RateLimits::default()));
    assert_eq!(u32::from_le_bytes(number(&bytes, 20)), 512);
    assert_eq!((bytes[24], u16::from_le_bytes(number(&bytes, 26))), (3, 8));
    assert_eq!(u32::from_le_bytes(number(&bytes, 44)), 8);

    // What a device says may make no sense.
    let odd = Blocks {
        logical: 4096,
        physical: 512,
        optimal: 5000,
        discard: 512,
    };
    let bytes = config(&disk_of(odd, 8192, RateLimits::default()));
    assert_eq!((bytes[24], u16::from_le_bytes(number(&bytes, 26))), (0, 1));
    assert_eq!(u32::from_le_bytes(number(&bytes, 28)), 0);
    assert_eq!(u32::from_le_bytes(number(&bytes, 44)), 8);
}

#[test]
fn parts_of_large_blocks_are_refused_and_counted() {
    let mut bench = Bench::limited(4096, &RateLimits::default());
    bench.ring.write(DATA, &[7; 4096]);
    bench.ask(OUT, 8, 4096);
    bench.ask(OUT, 1, 4096);
    bench.ask(OUT, 0, 512);
    bench.ask(IN, 16, 1024);
    let statuses: Vec<_> = bench.answers().iter().map(|answer| answer.2).collect();
    let ok = statuses.iter().filter(|status| **status == 0).count();
    assert_eq!((ok, statuses.len()), (1, 4));
    assert_eq!(bench.disk.counter("refused_requests_total"), 3);
    assert_eq!(bench.disk.counter("writes_total"), 1);
    assert!(bench.disk.script.lock().unwrap().data[..4096] == [0; 4096]);
}
