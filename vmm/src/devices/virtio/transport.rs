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
mod tests;
