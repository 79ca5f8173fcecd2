//! A NIC driven by hand-made rings, over a connection that ends in the test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{MERGEABLE, Net, NetConfig};
use super::stepping::Stepped;
use crate::config::RateLimits;
use crate::devices::virtio::device::{ActivateError, VirtioDevice, feature};
use crate::devices::virtio::harness::{DriverRing, NEXT, WRITE, activation, counter, memory};
use crate::net::fake::FakeNet;
use crate::net::{HEADER_LEN, NetBackend, Offloads};

const DATA: u64 = 0x10_0000;

/// A driver of one queue pair.
struct Bench {
    nic: Stepped,
    rx: DriverRing,
    tx: DriverRing,
}

impl Bench {
    fn new(mergeable: bool) -> Self {
        Self::limited(mergeable, [&RateLimits::default(); 2])
    }

    fn limited(mergeable: bool, limits: [&RateLimits; 2]) -> Self {
        let mem = memory();
        let (rx, tx) = (
            DriverRing::numbered(mem.clone(), 16, 0),
            DriverRing::numbered(mem, 16, 1),
        );
        Self {
            nic: Stepped::new(&rx, &tx, mergeable, limits),
            rx,
            tx,
        }
    }

    fn turn(&mut self) {
        self.nic.turn().unwrap();
    }

    /// Offers a receive buffer of `len` bytes at its own place.
    fn offer(&mut self, head: u16, len: u32) {
        self.rx.descriptor(head, Self::place(head), len, WRITE, 0);
        self.rx.offer(head);
    }

    fn place(head: u16) -> u64 {
        DATA + 0x1_0000 * u64::from(head)
    }

    fn arrive(&self, payload: &[u8]) {
        self.nic
            .net
            .send(&[&[0; HEADER_LEN], payload].concat())
            .unwrap();
    }
}

#[test]
fn a_frame_goes_into_one_buffer_if_it_fits() {
    let mut bench = Bench::new(true);
    bench.offer(4, 2048);
    bench.arrive(b"hello");
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(4, 17)]);
    let bytes = bench.rx.bytes(Bench::place(4), 17);
    assert_eq!(bytes[10..12], [1, 0], "one buffer");
    assert_eq!(bytes[12..], *b"hello");
    assert_eq!(
        (
            bench.nic.counter("received_frames_total"),
            bench.nic.counter("received_bytes_total")
        ),
        (1, 5)
    );
}

#[test]
fn a_long_frame_is_spread_over_buffers_once_there_are_enough() {
    let mut bench = Bench::new(true);
    let payload: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    bench.offer(0, 1000);
    bench.offer(1, 1000);
    bench.arrive(&payload);
    bench.turn();
    assert_eq!(bench.rx.take_used(), [], "not enough yet");
    bench.offer(2, 1000);
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(0, 1000), (1, 1000), (2, 12)]);
    assert_eq!(bench.rx.bytes(Bench::place(0) + 10, 2), [3, 0]);
    let pieces = [
        bench.rx.bytes(Bench::place(0), 1000),
        bench.rx.bytes(Bench::place(1), 1000),
    ]
    .concat();
    assert_eq!(pieces[12..], payload[..1988]);
    assert_eq!(bench.rx.bytes(Bench::place(2), 12), payload[1988..]);
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_lost_and_its_buffer_is_not() {
    let mut bench = Bench::new(false);
    bench.offer(0, 100);
    bench.arrive(&[1; 200]);
    bench.arrive(&[2; 80]);
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(0, 92)]);
    assert_eq!(bench.rx.bytes(DATA + 10, 3), [1, 0, 2]);
    assert_eq!(bench.nic.counter("receive_drops_total"), 1);
}

#[test]
fn buffers_split_within_the_header_are_filled_all_the_same() {
    let mut bench = Bench::new(false);
    bench.rx.descriptor(0, DATA, 11, WRITE | NEXT, 1);
    bench.rx.descriptor(1, DATA + 0x100, 100, WRITE, 0);
    bench.rx.offer(0);
    bench.arrive(b"xy");
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(0, 14)]);
    assert_eq!(
        (
            bench.rx.bytes(DATA + 10, 1),
            bench.rx.bytes(DATA + 0x100, 3)
        ),
        (vec![1], vec![0, b'x', b'y'])
    );
}

#[test]
fn a_frame_longer_than_the_whole_ring_is_lost() {
    let mut bench = Bench::new(true);
    for head in 0..16 {
        bench.offer(head, 20);
    }
    bench.arrive(&[1; 1000]);
    bench.arrive(&[2; 8]);
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(0, 20)]);
    assert_eq!(bench.nic.counter("receive_drops_total"), 1);
}

#[test]
fn frames_are_sent_from_several_buffers() {
    let mut bench = Bench::new(false);
    bench.tx.write(DATA, &[0; 12]);
    bench.tx.write(DATA + 0x100, b"frame");
    bench.tx.descriptor(0, DATA, 12, NEXT, 1);
    bench.tx.descriptor(1, DATA + 0x100, 3, NEXT, 2);
    bench.tx.descriptor(2, DATA + 0x103, 2, 0, 0);
    bench.tx.offer(0);
    bench.turn();
    assert_eq!(bench.tx.take_used(), [(0, 0)]);
    let mut frame = [0xff; 64];
    assert_eq!(bench.nic.net.recv(&mut frame).unwrap(), 17);
    assert_eq!(&frame[..17], b"\0\0\0\0\0\0\0\0\0\0\0\0frame");
    assert_eq!(
        (
            bench.nic.counter("sent_frames_total"),
            bench.nic.counter("sent_bytes_total")
        ),
        (1, 5)
    );
}

#[test]
fn what_is_no_frame_is_given_back_and_counted() {
    let mut bench = Bench::new(false);
    bench.tx.descriptor(0, DATA, 12, 0, 0);
    bench.tx.descriptor(1, DATA, 0x2_0000, 0, 0);
    bench.tx.descriptor(2, DATA, 100, WRITE, 0);
    for head in 0..3 {
        bench.tx.offer(head);
    }
    bench.turn();
    assert_eq!(bench.tx.take_used(), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(bench.nic.counter("refused_requests_total"), 3);
    assert!(bench.nic.net.recv(&mut [0; 64]).is_err());
}

#[test]
fn hostile_chains_stop_the_pair() {
    let outside = |bench: &mut Bench| {
        bench.rx.descriptor(0, 0xffff_f000, 2048, WRITE, 0);
        bench.rx.offer(0);
    };
    let without_room = |bench: &mut Bench| {
        bench.offer(0, 20);
        bench.rx.descriptor(1, DATA, 64, 0, 0);
        bench.rx.offer(1);
    };
    let endless = |bench: &mut Bench| {
        bench.tx.descriptor(0, DATA, 8, NEXT, 0);
        bench.tx.offer(0);
    };
    let runaway = |bench: &mut Bench| bench.tx.set_available_index(17);
    let attacks: [&dyn Fn(&mut Bench); 4] = [&outside, &without_room, &endless, &runaway];
    for attack in attacks {
        let mut bench = Bench::new(true);
        attack(&mut bench);
        bench.arrive(&[1; 100]);
        assert!(bench.nic.turn().is_err());
    }
}

/// Two frames at once, then one in ten milliseconds.
fn two_frames() -> RateLimits {
    RateLimits {
        operations_per_second: Some(100),
        operations_burst: Some(2),
        ..RateLimits::default()
    }
}

#[test]
fn each_direction_has_its_own_limit() {
    let bytes = RateLimits {
        bytes_per_second: Some(1000),
        bytes_burst: Some(100),
        ..RateLimits::default()
    };
    let mut bench = Bench::limited(true, [&two_frames(), &bytes]);
    for head in 0..4 {
        bench.offer(head, 2048);
        bench.arrive(&[head as u8; 50]);
        // Header and 60 bytes.
        bench.tx.descriptor(head, DATA, 72, 0, 0);
        bench.tx.offer(head);
    }
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(0, 62), (1, 62)]);
    assert_eq!(bench.tx.take_used(), [(0, 0)]);
    bench.nic.pass(10_000_000);
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(2, 62)]);
    assert_eq!(bench.rx.bytes(Bench::place(2) + 12, 1), [2], "in order");
    // 60 bytes were left of 100 - 40; 20 more take 20 ms.
    assert_eq!(bench.tx.take_used(), []);
    bench.nic.pass(10_000_000);
    bench.turn();
    assert_eq!(bench.rx.take_used(), [(3, 62)]);
    assert_eq!(bench.tx.take_used(), [(1, 0)]);
    assert_eq!(bench.nic.counter("receive_throttled_total"), 2);
    assert_eq!(bench.nic.counter("send_throttled_total"), 2);
    assert_eq!(bench.nic.counter("sent_frames_total"), 2);
}

#[test]
fn a_frame_that_waits_for_buffers_has_paid_already() {
    let mut bench = Bench::limited(true, [&two_frames(), &RateLimits::default()]);
    bench.arrive(&[1; 50]);
    bench.arrive(&[2; 50]);
    for _ in 0..5 {
        bench.turn();
    }
    bench.offer(0, 2048);
    bench.offer(1, 2048);
    bench.turn();
    assert_eq!(bench.rx.take_used().len(), 2);
    assert_eq!(bench.nic.counter("receive_throttled_total"), 0);
}

#[test]
fn a_nic_that_waits_for_its_limits_stops_at_once() {
    let limits = RateLimits {
        operations_per_second: Some(1),
        operations_burst: Some(1),
        ..RateLimits::default()
    };
    let config = NetConfig {
        receive_limits: limits,
        transmit_limits: limits,
        ..config()
    };
    let (backend, net) = FakeNet::pair();
    let mut nic = Net::new(&config, vec![Arc::new(backend)]).unwrap();
    let mem = memory();
    let (mut rx, mut tx) = (
        DriverRing::numbered(mem.clone(), 16, 0),
        DriverRing::numbered(mem.clone(), 16, 1),
    );
    for head in 0..8 {
        rx.descriptor(head, Bench::place(head), 2048, WRITE, 0);
        rx.offer(head);
        tx.descriptor(head, DATA, 64, 0, 0);
        tx.offer(head);
    }
    let queues = vec![rx.active(0), tx.active(1)];
    nic.activate(activation(mem, feature::COMMON, queues))
        .unwrap();
    // What comes before the driver is ready does not count.
    until(|| counter(&nic, "sent_frames_total") > 0);
    for _ in 0..8 {
        net.send(&[9; 100]).unwrap();
    }
    until(|| counter(&nic, "receive_throttled_total") > 0);
    until(|| counter(&nic, "send_throttled_total") > 0);
    let asked = Instant::now();
    let queues = nic.stop();
    assert!(asked.elapsed() < Duration::from_secs(5));
    for (queue, ring) in queues.iter().zip([&mut rx, &mut tx]) {
        let state = queue.queue.state();
        assert_eq!(state.next_avail, state.next_used);
        assert_eq!(ring.take_used().len(), usize::from(state.next_used));
        assert!((1..8).contains(&state.next_used));
    }
}

fn config() -> NetConfig {
    NetConfig {
        id: "lan".into(),
        mac: [2, 0, 0, 0, 0, 7],
        mtu: 1450,
        receive_limits: RateLimits::default(),
        transmit_limits: RateLimits::default(),
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

const MULTI_QUEUE: u64 = 1 << 22;
const CONTROL: u64 = 1 << 17;

#[test]
fn the_whole_device_echoes_and_stops_with_its_queues() {
    let (backend, net) = FakeNet::pair();
    let backend = Arc::new(backend);
    let mut nic = Net::new(&config(), vec![backend.clone()]).unwrap();
    assert_eq!(nic.features() & (MULTI_QUEUE | CONTROL), 0);
    let mut bytes = [0; 12];
    nic.config_read(0, &mut bytes);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xaa, 5]);

    net.send(&[9; 100]).unwrap();
    let mem = memory();
    let (mut rx, mut tx) = (
        DriverRing::numbered(mem.clone(), 16, 0),
        DriverRing::numbered(mem.clone(), 16, 1),
    );
    rx.descriptor(0, DATA, 2048, WRITE, 0);
    rx.offer(0);
    tx.descriptor(0, DATA + 0x1000, 64, 0, 0);
    let (rx_active, tx_active) = (rx.active(0), tx.active(1));
    let kick = tx_active.kick.clone();
    let features = feature::COMMON | MERGEABLE | 1 << 1 | 1 << 7;
    nic.activate(activation(mem, features, vec![rx_active, tx_active]))
        .unwrap();
    tx.offer(0);
    kick.write(1).unwrap();
    until(|| tx.take_used() == [(0, 0)]);
    assert_eq!(net.recv(&mut [0; 128]).unwrap(), 64);
    let expected = Offloads {
        checksum: true,
        tcp4: true,
        tcp6: false,
        ecn: false,
    };
    assert_eq!(*backend.offloads.lock().unwrap(), Some(expected));

    net.send(&[3; 60]).unwrap();
    until(|| rx.take_used() == [(0, 60)]);
    assert_eq!(
        rx.bytes(DATA, 1),
        [3],
        "and not what came before the driver was ready"
    );
    let queues = nic.stop();
    assert_eq!(
        queues.iter().map(|queue| queue.index).collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!(queues[0].queue.state().next_used, 1);
}

#[test]
fn pairs_are_attached_as_the_driver_asks() {
    let ends: Vec<_> = (0..2).map(|_| FakeNet::pair()).collect();
    let (backends, _nets): (Vec<_>, Vec<_>) = ends
        .into_iter()
        .map(|(ours, net)| (Arc::new(ours), net))
        .unzip();
    let dynamic = |backend: &Arc<FakeNet>| {
        let backend: Arc<dyn NetBackend> = backend.clone();
        backend
    };
    let mut nic = Net::new(&config(), backends.iter().map(dynamic).collect()).unwrap();
    assert_eq!(nic.queue_sizes().len(), 5);
    assert_eq!(
        nic.features() & (MULTI_QUEUE | CONTROL),
        MULTI_QUEUE | CONTROL
    );
    let mem = memory();
    let rings: Vec<_> = (0..4)
        .map(|number| DriverRing::numbered(mem.clone(), 16, number))
        .collect();
    let mut control = DriverRing::numbered(mem.clone(), 16, 4);
    let mut queues: Vec<_> = (0..)
        .zip(&rings)
        .map(|(index, ring)| ring.active(index))
        .collect();
    let kick = queues[0].kick.clone();
    queues.push(control.active(4));
    let attached = || -> Vec<bool> {
        backends
            .iter()
            .map(|backend| *backend.attached.lock().unwrap())
            .collect()
    };
    nic.activate(activation(
        mem,
        feature::COMMON | MULTI_QUEUE | CONTROL,
        queues,
    ))
    .unwrap();
    for (pairs, ack, result) in [
        (2_u16, 0, [true, true]),
        (0, 1, [true, true]),
        (3, 1, [true, true]),
        (1, 0, [true, false]),
    ] {
        control.write(DATA, &[4, 0]);
        control.write(DATA + 2, &pairs.to_le_bytes());
        control.write(DATA + 0x10, &[0xee]);
        control.descriptor(0, DATA, 2, NEXT, 1);
        control.descriptor(1, DATA + 2, 2, NEXT, 2);
        control.descriptor(2, DATA + 0x10, 1, WRITE, 0);
        control.offer(0);
        // Any queue of the worker's wakes it.
        kick.write(1).unwrap();
        until(|| control.take_used() == [(0, 1)]);
        assert_eq!(
            (control.bytes(DATA + 0x10, 1), attached()),
            (vec![ack], result.to_vec()),
            "{pairs} pairs"
        );
    }
    assert_eq!(nic.stop().len(), 5);
}

#[test]
fn half_a_pair_is_refused() {
    let (backend, _net) = FakeNet::pair();
    let mut nic = Net::new(&config(), vec![Arc::new(backend)]).unwrap();
    let mem = memory();
    let ring = DriverRing::new(mem.clone(), 16);
    let refused = nic.activate(activation(mem.clone(), 0, vec![ring.active(1)]));
    assert!(matches!(
        refused,
        Err(ActivateError::QueueMissing { index: 0 })
    ));
    let refused = nic.activate(activation(mem, 0, vec![ring.active(0)]));
    assert!(matches!(
        refused,
        Err(ActivateError::QueueMissing { index: 1 })
    ));
    assert!(nic.stop().is_empty());
}
