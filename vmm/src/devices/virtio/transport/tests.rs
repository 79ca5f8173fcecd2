//! The transport as a driver meets it: a function with a recording device in it.

use super::*;
use crate::devices::virtio::device::{NO_VECTOR, feature};
use crate::devices::virtio::harness::{DriverRing, RECORDER_FEATURE, Recorder, memory};
use crate::interrupt::fake::FakeLinks;
use proptest::prelude::*;
use std::sync::Mutex;

const ADDRESS: u64 = 0xd000_0000;

/// A function with a recorder in it, and a driver's hands.
struct Bench {
    function: VirtioPci,
    links: Arc<FakeLinks>,
    log: Arc<Mutex<Vec<String>>>,
    mem: Arc<GuestMemory>,
}

impl Bench {
    fn new() -> Self {
        let links = Arc::new(FakeLinks::default());
        let interrupts = Arc::new(Interrupts::new(links.clone()));
        let recorder = Recorder::default();
        let log = recorder.log.clone();
        let mem = memory();
        let function = VirtioPci::new(
            Box::new(recorder),
            mem.clone(),
            links.clone(),
            interrupts,
            ADDRESS,
        )
        .unwrap();
        Self {
            function,
            links,
            log,
            mem,
        }
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn set8(&mut self, at: u64, value: u8) {
        self.function.bar_write(BAR, at, &[value]);
    }

    fn set16(&mut self, at: u64, value: u16) {
        self.function.bar_write(BAR, at, &value.to_le_bytes());
    }

    fn set32(&mut self, at: u64, value: u32) {
        self.function.bar_write(BAR, at, &value.to_le_bytes());
    }

    fn set64(&mut self, at: u64, value: u64) {
        self.set32(at, value as u32);
        self.set32(at + 4, (value >> 32) as u32);
    }

    fn get<const N: usize>(&mut self, at: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.function.bar_read(BAR, at, &mut data);
        data
    }

    fn status(&mut self) -> u8 {
        self.get::<1>(20)[0]
    }

    fn negotiate(&mut self, features: u64) {
        self.set8(20, status::ACKNOWLEDGE);
        self.set8(20, status::ACKNOWLEDGE | status::DRIVER);
        self.set32(8, 0);
        self.set32(12, features as u32);
        self.set32(8, 1);
        self.set32(12, (features >> 32) as u32);
        self.set8(
            20,
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
        );
    }

    fn enable_queue(&mut self, index: u16, ring: &DriverRing) {
        self.set16(22, index);
        self.set16(24, ring.size);
        self.set64(32, ring.table);
        self.set64(40, ring.available);
        self.set64(48, ring.used);
        self.set16(28, 1);
    }

    fn driver_ok(&mut self) {
        let so_far = self.status();
        self.set8(20, so_far | status::DRIVER_OK);
    }
}

const GOOD: u64 = feature::VERSION_1 | feature::RING_EVENT_IDX;

#[test]
fn a_driver_that_does_everything_right_gets_a_running_device() {
    let mut bench = Bench::new();
    let ring = DriverRing::new(bench.mem.clone(), 8);
    assert_eq!(u16::from_le_bytes(bench.get(18)), 2);
    bench.negotiate(GOOD | RECORDER_FEATURE);
    assert_eq!(bench.status(), 0x0b);
    bench.enable_queue(1, &ring);
    bench.driver_ok();
    assert_eq!(bench.status(), 0x0f);
    assert_eq!(
        bench.log(),
        [format!("activate {:#x} [(1, 8)]", GOOD | RECORDER_FEATURE)]
    );
    // Too late for changes now.
    bench.set64(32, 0);
    assert_eq!(u64::from_le_bytes(bench.get(32)), ring.table);
}

#[test]
fn features_that_are_not_on_offer_or_not_modern_are_refused() {
    for features in [GOOD | 1 << 40, feature::RING_EVENT_IDX, 0] {
        let mut bench = Bench::new();
        bench.negotiate(features);
        assert_eq!(bench.status(), status::ACKNOWLEDGE | status::DRIVER);
        bench.driver_ok();
        assert_eq!(bench.status() & status::DRIVER_OK, 0);
        assert!(bench.log().is_empty());
    }
}

#[test]
fn offered_features_are_shown_in_two_halves() {
    let mut bench = Bench::new();
    let low = u32::from_le_bytes(bench.get(4));
    bench.set32(0, 1);
    let high = u32::from_le_bytes(bench.get(4));
    assert_eq!(
        u64::from(low) | u64::from(high) << 32,
        feature::COMMON | RECORDER_FEATURE
    );
    bench.set32(0, 2);
    assert_eq!(u32::from_le_bytes(bench.get(4)), 0);
}

#[test]
fn queues_that_cannot_be_are_answered_with_needs_reset() {
    let misplaced: [fn(&mut DriverRing); 4] = [
        |ring| ring.table = 0x1f_ffc0,
        |ring| ring.available = 0xffff_ffff_ffff_fff0,
        |ring| ring.used += 2,
        |ring| ring.available = 0,
    ];
    for misplace in misplaced {
        let mut bench = Bench::new();
        let mut ring = DriverRing::new(bench.mem.clone(), 8);
        misplace(&mut ring);
        bench.negotiate(GOOD);
        bench.enable_queue(0, &ring);
        bench.driver_ok();
        assert_eq!(bench.status(), 0x0f | status::NEEDS_RESET);
        assert!(bench.log().is_empty());
        // The way out.
        bench.set8(20, 0);
        assert_eq!(bench.status(), 0);
    }
}

#[test]
fn sizes_a_queue_cannot_have_are_not_taken() {
    let mut bench = Bench::new();
    for size in [0, 3, 32, 0x8000] {
        bench.set16(24, size);
        assert_eq!(u16::from_le_bytes(bench.get(24)), 16);
    }
    bench.set16(22, 2);
    assert_eq!(
        u16::from_le_bytes(bench.get(24)),
        0,
        "queue 2 does not exist"
    );
    bench.set16(22, 0xffff);
    bench.set16(28, 1);
    bench.set64(32, u64::MAX);
}

#[test]
fn a_reset_stops_the_device_and_the_handshake_starts_over() {
    let mut bench = Bench::new();
    let ring = DriverRing::new(bench.mem.clone(), 8);
    for _ in 0..2 {
        bench.negotiate(GOOD);
        bench.set16(22, 0);
        bench.set16(26, 1);
        bench.enable_queue(0, &ring);
        bench.driver_ok();
        assert_eq!(bench.log(), [format!("activate {GOOD:#x} [(0, 8)]")]);
        bench.set8(20, 0);
        assert_eq!(bench.log(), ["stop"]);
        assert_eq!(bench.status(), 0);
        assert_eq!(u16::from_le_bytes(bench.get(26)), NO_VECTOR);
        assert_eq!(bench.get::<2>(28), [0; 2]);
    }
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let mut bench = Bench::new();
    bench.set16(16, 2);
    assert_eq!(u16::from_le_bytes(bench.get(16)), 2);
    bench.set16(16, 3);
    assert_eq!(u16::from_le_bytes(bench.get(16)), NO_VECTOR);
}

#[test]
fn doorbells_are_where_the_bar_is_and_only_while_it_is() {
    let mut bench = Bench::new();
    assert!(bench.links.doorbells().is_empty());
    assert_eq!(
        bench.function.config_write(4, &[0b110, 0]),
        ConfigEffect::BarsMoved
    );
    assert_eq!(
        bench.links.doorbells(),
        [ADDRESS + NOTIFY, ADDRESS + NOTIFY + 4]
    );
    assert_eq!(
        bench.function.config_write(0x12, &[0x00, 0xe0]),
        ConfigEffect::BarsMoved
    );
    assert_eq!(bench.links.doorbells(), [0xe000_3000, 0xe000_3004]);
    assert_eq!(bench.function.config_write(0x3c, &[9]), ConfigEffect::None);
    bench.function.reset();
    assert!(bench.links.doorbells().is_empty());
    assert_eq!(bench.function.bars(), []);
}

#[test]
fn a_doorbell_that_came_to_us_kicks_its_queue() {
    let mut bench = Bench::new();
    bench.set16(NOTIFY + 4, 1);
    assert!(bench.function.kicks[0].read().is_err());
    assert_eq!(bench.function.kicks[1].read().unwrap(), 1);
    bench.set16(NOTIFY + 8, 2);
}

#[test]
fn the_interrupt_status_is_cleared_by_reading_it() {
    let mut bench = Bench::new();
    bench.function.interrupt.signal_queue(0);
    bench.function.interrupt.signal_config();
    assert_eq!(bench.get::<1>(ISR), [3]);
    assert_eq!(bench.get::<1>(ISR), [0]);
}

/// Follows the capability list as a driver does: id, offset, `cfg_type`.
fn capabilities(function: &mut VirtioPci) -> Vec<(u8, u16, u8)> {
    let mut byte = |at: u16| {
        let mut data = [0];
        function.config_read(at, &mut data);
        data[0]
    };
    let mut found = Vec::new();
    let mut at = u16::from(byte(0x34));
    while at != 0 {
        found.push((byte(at), at, byte(at + 3)));
        at = u16::from(byte(at + 1));
    }
    found
}

#[test]
fn every_structure_is_found_through_the_capabilities() {
    let mut bench = Bench::new();
    let found = capabilities(&mut bench.function);
    assert_eq!(found[0].0, msix::CAPABILITY_ID);
    let kinds: Vec<_> = found[1..]
        .iter()
        .map(|(id, _, kind)| (*id, *kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (9, CFG_COMMON),
            (9, CFG_ISR),
            (9, CFG_DEVICE),
            (9, CFG_NOTIFY),
            (9, CFG_PCI)
        ]
    );
    let mut control = [0; 2];
    bench.function.config_read(found[0].1 + 2, &mut control);
    assert_eq!(u16::from_le_bytes(control), 2, "three vectors");
}

#[test]
fn the_bar_can_be_reached_through_configuration_space() {
    let mut bench = Bench::new();
    let at = capabilities(&mut bench.function).last().unwrap().1;
    bench
        .function
        .config_write(at + 8, &(DEVICE as u32 + 2).to_le_bytes());
    bench.function.config_write(at + 12, &2_u32.to_le_bytes());
    let mut data = [0; 2];
    bench.function.config_read(at + 16, &mut data);
    assert_eq!(data, [3, 4]);
    bench.function.config_write(at + 8, &20_u32.to_le_bytes());
    bench.function.config_write(at + 12, &1_u32.to_le_bytes());
    bench.function.config_write(at + 16, &[status::ACKNOWLEDGE]);
    assert_eq!(bench.status(), status::ACKNOWLEDGE);
    // A window that reaches out of the BAR is none.
    for window in [0x7fff_u32, 0x8000, 0xffff_fffc] {
        bench.function.config_write(at + 8, &window.to_le_bytes());
        bench.function.config_write(at + 12, &4_u32.to_le_bytes());
        let mut data = [0; 4];
        bench.function.config_read(at + 16, &mut data);
        assert_eq!(data, [0; 4]);
    }
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_harms_the_function(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<bool>(), 0..BAR_SIZE, 0..4_u32, any::<u64>()), 0..200
        )
    ) {
        let mut bench = Bench::new();
        for (config, write, offset, width, value) in accesses {
            let len = 1_usize << width;
            let bytes = &value.to_le_bytes()[..len];
            // Half of the accesses where something is.
            let offset = if value % 2 == 0 { offset % 0x40 } else { offset };
            let mut data = [0; 8];
            match (config, write) {
                (true, true) => drop(bench.function.config_write(offset as u16, bytes)),
                (true, false) => bench.function.config_read(offset as u16, &mut data[..len]),
                (false, true) => bench.function.bar_write(BAR, offset, bytes),
                (false, false) => bench.function.bar_read(BAR, offset, &mut data[..len]),
            }
        }
        let bars = bench.function.bars();
        let linked = bench.links.doorbells();
        prop_assert_eq!(linked.is_empty(), bars.is_empty());
        bench.function.reset();
        prop_assert_eq!(bench.status(), 0);
    }
}
