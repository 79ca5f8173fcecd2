//! virtio over PCI (virtio 1.3 §4.1), modern only.
//!
//! One 64-bit BAR holds everything, a page per structure so that a doorbell can be handled without its neighbours:
//!
//! ```text
//!   0x0000  common configuration         how driver and device agree          common_config.rs
//!   0x1000  ISR status                   read clears
//!   0x2000  device configuration         capacity, MAC address, …             the device's
//!   0x3000  notification                 four bytes a queue; an ioeventfd each, so a doorbell does not exit to us
//!   0x4000  MSI-X table                  (and the next page)                  pci/msix.rs
//!   0x6000  MSI-X pending bits
//! ```
//!
//! Vector 0 is not special: the driver assigns vectors to the configuration and to each queue as it likes. There is no
//! INTx: a driver without MSI-X polls the ISR status, or does without.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common_config::{CommonConfig, Effect, status};
use super::device::{Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};
use crate::interrupt::{EventLinks, InterruptError, Interrupts};
use crate::memory::GuestMemory;
use crate::metrics::Counter;
use crate::pci::bars::{BarError, MemoryBar};
use crate::pci::config_space::{ConfigSpace, Identity, NoRoom};
use crate::pci::msix::{self, Msix};
use crate::pci::{BarRegion, ConfigEffect, PciFunction};

/// Size and alignment of a virtio function's one BAR.
pub const BAR_SIZE: u64 = 0x8000;
const BAR: u8 = 0;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PBA: u64 = 0x6000;
const PAGE: u64 = 0x1000;
/// Distance between two queues' notification addresses.
const NOTIFY_STRIDE: u64 = 4;
/// What fits into the pages above.
const QUEUES_MAX: usize = 500;

/// Vendor of all virtio devices.
const VENDOR: u16 = 0x1af4;
/// A modern device's number is this plus its virtio ID (virtio 1.3 §4.1.2).
const DEVICE_BASE: u16 = 0x1040;

/// Vendor-specific capability, which virtio uses for its structures.
const VENDOR_CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// The function could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// More queues than the BAR has room for.
    #[error("a virtio device cannot have {queues} queues")]
    TooManyQueues {
        /// The device's number of queues.
        queues: usize,
    },
    /// The BAR cannot be where it was asked for.
    #[error("the BAR cannot be placed")]
    Bar(#[from] BarError),
    /// Configuration space is full.
    #[error("the capabilities do not fit")]
    Capabilities(#[from] NoRoom),
    /// No interrupt vectors.
    #[error("could not get the interrupt vectors")]
    Interrupts(#[from] InterruptError),
    /// No eventfd could be made.
    #[error("could not create an eventfd for a queue")]
    EventFd(#[source] std::io::Error),
}

/// What the transport counts.
#[derive(Debug, Default)]
struct TransportCounters {
    activations: Counter,
    refused_activations: Counter,
    resets: Counter,
    /// Doorbells that cost the guest an exit to us.
    slow_doorbells: Counter,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    mem: Arc<GuestMemory>,
    links: Arc<dyn EventLinks>,
    config: ConfigSpace,
    common: CommonConfig,
    msix: Msix,
    interrupt: Arc<VirtioInterrupt>,
    kicks: Vec<Arc<EventFd>>,
    /// Which doorbells are linked, and at which BAR address.
    doorbells: Option<(u64, Vec<bool>)>,
    /// Offset of the MSI-X message control word.
    msix_control: usize,
    /// Offset of the PCI configuration access capability.
    pci_cfg: u16,
    counters: TransportCounters,
}

impl VirtioPci {
    /// Makes a function of `device`, with its BAR at `bar_address` until the guest moves it.
    ///
    /// `links` is the machine's `VmFd`; `interrupts` the machine's table over the same.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        mem: Arc<GuestMemory>,
        links: Arc<dyn EventLinks>,
        interrupts: Arc<Interrupts>,
        bar_address: u64,
    ) -> Result<Self, TransportError> {
        let queues = device.queue_sizes().len();
        if queues > QUEUES_MAX {
            return Err(TransportError::TooManyQueues { queues });
        }
        let id = device.kind().id();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + id,
            revision: 1,
            class: device.kind().pci_class(),
            subsystem_vendor: VENDOR,
            subsystem: DEVICE_BASE + id,
        });
        config.add_bar(MemoryBar::new(BAR, BAR_SIZE)?, bar_address)?;

        // A vector for each queue and one for the configuration: no driver needs more.
        let msix = Msix::new(interrupts, queues as u16 + 1)?;
        let (body, writable) = msix.capability(BAR, MSIX_TABLE as u32, MSIX_PBA as u32);
        let msix_at = config.add_capability(msix::CAPABILITY_ID, &body, &writable)?;
        add_structure(&mut config, CFG_COMMON, COMMON, &[])?;
        add_structure(&mut config, CFG_ISR, ISR, &[])?;
        add_structure(&mut config, CFG_DEVICE, DEVICE, &[])?;
        add_structure(
            &mut config,
            CFG_NOTIFY,
            NOTIFY,
            &(NOTIFY_STRIDE as u32).to_le_bytes(),
        )?;
        let pci_cfg = add_pci_cfg(&mut config)?;

        let kicks = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(TransportError::EventFd)?;
        let common = CommonConfig::new(device.features(), device.queue_sizes(), msix.count());
        let interrupt = Arc::new(VirtioInterrupt::new(msix.vectors(), queues));
        Ok(Self {
            device,
            mem,
            links,
            config,
            common,
            msix,
            interrupt,
            kicks,
            doorbells: None,
            msix_control: usize::from(msix_at) + 2,
            pci_cfg: u16::from(pci_cfg),
            counters: TransportCounters::default(),
        })
    }

    /// The function's counters and its device's.
    pub fn counters(&self) -> Vec<(&'static str, Counter)> {
        let mut all = vec![
            ("activations_total", self.counters.activations.clone()),
            (
                "refused_activations_total",
                self.counters.refused_activations.clone(),
            ),
            ("resets_total", self.counters.resets.clone()),
            ("slow_doorbells_total", self.counters.slow_doorbells.clone()),
            (
                "unroutable_interrupts_total",
                self.msix.vectors().unroutable().clone(),
            ),
        ];
        all.extend(self.device.counters());
        all
    }

    /// The driver is ready: check its queues and start the device, or tell it to start over.
    fn start(&mut self) {
        let queues = match self.common.queues(&self.mem) {
            Ok(queues) => queues,
            Err(_) => return self.refuse(),
        };
        let kick = |index: u16| self.kicks.get(usize::from(index)).cloned();
        let queues = queues
            .into_iter()
            .filter_map(|(index, queue)| {
                Some(ActiveQueue {
                    index,
                    queue,
                    kick: kick(index)?,
                })
            })
            .collect();
        let activation = Activation {
            mem: self.mem.clone(),
            features: self.common.features(),
            queues,
            interrupt: self.interrupt.clone(),
        };
        if self.device.activate(activation).is_ok() {
            self.counters.activations.count();
        } else {
            self.refuse();
        }
    }

    fn refuse(&self) {
        self.counters.refused_activations.count();
        self.interrupt.fail();
    }

    /// A reset by the driver: the device forgets everything but its PCI configuration.
    fn reset_device(&mut self) {
        drop(self.device.stop());
        self.common.reset();
        self.interrupt.reset();
        for kick in &self.kicks {
            // Forget doorbells of the driver that is gone; an empty eventfd says so with an error.
            let _ = kick.read();
        }
        self.counters.resets.count();
    }

    /// Links the doorbells where the BAR is now.
    fn follow_bar(&mut self) {
        let now = self.config.bars().first().map(|bar| bar.address);
        if now == self.doorbells.as_ref().map(|(address, _)| *address) {
            return;
        }
        if let Some((address, linked)) = self.doorbells.take() {
            for ((at, kick), _) in doorbells(address)
                .zip(&self.kicks)
                .zip(linked)
                .filter(|(_, linked)| *linked)
            {
                // A doorbell that KVM no longer knows is as good as unlinked.
                let _ = self.links.unlink_doorbell(kick, at);
            }
        }
        if let Some(address) = now {
            // A doorbell that cannot be linked (a guest may put two BARs at one address) still works: its writes come
            // to `bar_write`, only slower.
            let link =
                |(at, kick): (u64, &Arc<EventFd>)| self.links.link_doorbell(kick, at).is_ok();
            self.doorbells = Some((
                address,
                doorbells(address).zip(&self.kicks).map(link).collect(),
            ));
        }
    }

    /// The BAR access that the PCI configuration access capability describes (virtio 1.3 §4.1.4.9), if it is one.
    fn pci_cfg_window(&self, offset: u16, len: usize) -> Option<u64> {
        let at = usize::from(self.pci_cfg);
        if usize::from(offset) != at + 16 {
            return None;
        }
        let bar = self.config.u32_at(at + 4) as u8;
        let window = u64::from(self.config.u32_at(at + 8));
        let length = u64::from(self.config.u32_at(at + 12));
        let fits = matches!(length, 1 | 2 | 4) && length == len as u64 && window % length == 0;
        (bar == BAR && fits && window + length <= BAR_SIZE).then_some(window)
    }
}

/// Addresses of the doorbells, for a BAR at `address`.
fn doorbells(address: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |index| address + NOTIFY + NOTIFY_STRIDE * index)
}

/// `struct virtio_pci_cap` for a structure of one page in the BAR.
fn add_structure(
    config: &mut ConfigSpace,
    kind: u8,
    offset: u64,
    extra: &[u8],
) -> Result<u8, NoRoom> {
    let mut body = vec![16 + extra.len() as u8, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((PAGE as u32).to_le_bytes());
    body.extend(extra);
    config.add_capability(VENDOR_CAPABILITY, &body, &[])
}

/// `struct virtio_pci_cfg_cap`: the driver says BAR, offset and length, and accesses the last four bytes.
fn add_pci_cfg(config: &mut ConfigSpace) -> Result<u8, NoRoom> {
    let mut body = [0; 18];
    body[0] = 20;
    body[1] = CFG_PCI;
    let mut writable = [0; 18];
    writable[2] = 0xff;
    writable[6..14].fill(0xff);
    config.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        match self.pci_cfg_window(offset, data.len()) {
            Some(window) => self.bar_read(BAR, window, data),
            None => self.config.read(offset, data),
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        if let Some(window) = self.pci_cfg_window(offset, data.len()) {
            self.bar_write(BAR, window, data);
            return ConfigEffect::None;
        }
        let before = self.config.bars();
        self.config.write(offset, data);
        self.msix.set_control(
            self.config.u16_at(self.msix_control),
            self.config.is_bus_master(),
        );
        if self.config.bars() == before {
            return ConfigEffect::None;
        }
        self.follow_bar();
        ConfigEffect::BarsMoved
    }

    fn bars(&self) -> Vec<BarRegion> {
        self.config.bars()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != BAR {
            return;
        }
        match offset {
            ..ISR => self.common.read(offset - COMMON, data, &self.interrupt),
            ISR..DEVICE => {
                if offset == ISR
                    && let Some(first) = data.first_mut()
                {
                    *first = self.interrupt.take_isr();
                }
            }
            DEVICE..NOTIFY => self.device.config_read(offset - DEVICE, data),
            NOTIFY..MSIX_TABLE => {}
            MSIX_TABLE..MSIX_PBA => self.msix.table_read(offset - MSIX_TABLE, data),
            MSIX_PBA..BAR_SIZE => self.msix.pba_read(offset - MSIX_PBA, data),
            BAR_SIZE.. => {}
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        match offset {
            ..ISR => match self.common.write(offset - COMMON, data, &self.interrupt) {
                Effect::None => {}
                Effect::Reset => self.reset_device(),
                Effect::Start => self.start(),
            },
            DEVICE..NOTIFY => {
                if self.common.status() & status::DRIVER != 0 {
                    self.device.config_write(offset - DEVICE, data);
                }
            }
            NOTIFY..MSIX_TABLE => {
                let index =
                    usize::try_from((offset - NOTIFY) / NOTIFY_STRIDE).unwrap_or(usize::MAX);
                if let Some(kick) = self.kicks.get(index) {
                    self.counters.slow_doorbells.count();
                    // Fails only when the counter is full, and then the worker is being woken already.
                    let _ = kick.write(1);
                }
            }
            MSIX_TABLE..MSIX_PBA => self.msix.table_write(offset - MSIX_TABLE, data),
            ISR..DEVICE | MSIX_PBA.. => {}
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        self.config.reset();
        self.msix.reset();
        self.follow_bar();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        drop(self.device.stop());
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::{NO_VECTOR, feature};
    use super::super::harness::{DriverRing, RECORDER_FEATURE, Recorder, memory};
    use super::*;
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
}
