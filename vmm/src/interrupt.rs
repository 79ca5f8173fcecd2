//! How devices reach the guest's interrupt controllers, and how a guest's doorbell reaches a device: eventfds on both
//! sides, wired up in KVM so that neither needs a system call of a vCPU thread.
//!
//! [`Interrupts`] owns the one GSI routing table of the machine. GSIs 0 to 23 are the I/O APIC's pins (and the PIC's,
//! for the first sixteen), as KVM has them by default; from 24 up each GSI is one MSI vector of one device. Nothing here
//! knows PCI: masking and pending bits are [`crate::pci::msix`]'s.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Pins of the I/O APIC; the first GSI that is free for MSI.
pub const IOAPIC_PINS: u32 = 24;
/// Pins of the two cascaded PICs.
const PIC_PINS: u32 = 16;
/// Most MSI vectors of one machine. KVM allows 4096 routes in all; this leaves room for the pins' 40.
const MSI_MAX: u32 = 2048;

/// What KVM does with eventfds. The other implementation is the fake that unit tests and fuzz targets use.
pub trait EventLinks: Send + Sync {
    /// Replaces the whole routing table.
    fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()>;
    /// From now on a write to `fd` raises `gsi`.
    fn link_irq(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;
    /// Undoes [`Self::link_irq`].
    fn unlink_irq(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;
    /// From now on a guest's write of any size to `address` signals `fd` and does not leave the kernel.
    fn link_doorbell(&self, fd: &EventFd, address: u64) -> io::Result<()>;
    /// Undoes [`Self::link_doorbell`].
    fn unlink_doorbell(&self, fd: &EventFd, address: u64) -> io::Result<()>;
}

impl EventLinks for VmFd {
    fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()> {
        let table = KvmIrqRouting::from_entries(routes).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(self.set_gsi_routing(&table)?)
    }

    fn link_irq(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.register_irqfd(fd, gsi)?)
    }

    fn unlink_irq(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.unregister_irqfd(fd, gsi)?)
    }

    fn link_doorbell(&self, fd: &EventFd, address: u64) -> io::Result<()> {
        Ok(self.register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn unlink_doorbell(&self, fd: &EventFd, address: u64) -> io::Result<()> {
        Ok(self.unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }
}

/// An interrupt could not be wired up.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// Every vector is in use.
    #[error("the machine has no MSI vector left ({MSI_MAX} are in use)")]
    NoVectorLeft,
    /// Not a pin of the I/O APIC.
    #[error("interrupt {gsi} is not one of the {IOAPIC_PINS} pins")]
    NotAPin {
        /// The number asked for.
        gsi: u32,
    },
    /// No eventfd could be made.
    #[error("could not create an eventfd for an interrupt")]
    EventFd(#[source] io::Error),
    /// KVM refused the irqfd.
    #[error("could not link an eventfd to interrupt {gsi}")]
    Link {
        /// The interrupt.
        gsi: u32,
        /// KVM's answer.
        source: io::Error,
    },
    /// KVM refused the routing table.
    #[error("could not route interrupt {gsi}")]
    Route {
        /// The interrupt whose route changed.
        gsi: u32,
        /// KVM's answer.
        source: io::Error,
    },
}

/// One MSI vector: an eventfd whose write becomes the message that [`Interrupts::set`] has given for its GSI.
#[derive(Debug)]
pub struct MsiVector {
    /// The interrupt's number in the routing table.
    pub gsi: u32,
    /// Signal it to interrupt the guest; safe from every thread.
    pub eventfd: EventFd,
}

/// An MSI message as the guest has programmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    address_lo: u32,
    address_hi: u32,
    data: u32,
}

/// Taken MSI GSIs and the messages routed to them; a vector that was never programmed has none.
type Vectors = BTreeMap<u32, Option<Message>>;

/// The machine's interrupt routes.
pub struct Interrupts {
    links: Arc<dyn EventLinks>,
    vectors: Mutex<Vectors>,
}

impl Interrupts {
    /// An interrupt table with the pins' default routes. The in-kernel interrupt controllers must exist already.
    pub fn new(links: Arc<dyn EventLinks>) -> Self {
        Self {
            links,
            vectors: Mutex::new(BTreeMap::new()),
        }
    }

    /// Takes a free vector and links its eventfd. It delivers nothing before [`Self::set`] has given it a message.
    pub fn allocate_msi(&self) -> Result<MsiVector, InterruptError> {
        let mut vectors = self.lock();
        let gsi = (IOAPIC_PINS..IOAPIC_PINS + MSI_MAX)
            .find(|gsi| !vectors.contains_key(gsi))
            .ok_or(InterruptError::NoVectorLeft)?;
        let eventfd = EventFd::new(EFD_NONBLOCK).map_err(InterruptError::EventFd)?;
        self.links
            .link_irq(&eventfd, gsi)
            .map_err(|source| InterruptError::Link { gsi, source })?;
        vectors.insert(gsi, None);
        Ok(MsiVector { gsi, eventfd })
    }

    /// Gives a vector back.
    pub fn release_msi(&self, vector: &MsiVector) -> Result<(), InterruptError> {
        let gsi = vector.gsi;
        let mut vectors = self.lock();
        self.links
            .unlink_irq(&vector.eventfd, gsi)
            .map_err(|source| InterruptError::Link { gsi, source })?;
        match vectors.remove(&gsi) {
            Some(Some(_)) => self.install(&vectors, gsi),
            _ => Ok(()),
        }
    }

    /// Says which message `gsi` sends. Costs a system call only when the message differs from the present one.
    pub fn set(
        &self,
        gsi: u32,
        address_lo: u32,
        address_hi: u32,
        data: u32,
    ) -> Result<(), InterruptError> {
        let message = Some(Message {
            address_lo,
            address_hi,
            data,
        });
        let mut vectors = self.lock();
        match vectors.get_mut(&gsi) {
            None => return Err(InterruptError::NotAPin { gsi }),
            Some(present) if *present == message => return Ok(()),
            Some(present) => *present = message,
        }
        self.install(&vectors, gsi)
    }

    /// An eventfd that raises pin `gsi` of the I/O APIC as an edge: for the platform's own devices such as COM1.
    pub fn pin(&self, gsi: u32) -> Result<EventFd, InterruptError> {
        if gsi >= IOAPIC_PINS {
            return Err(InterruptError::NotAPin { gsi });
        }
        let eventfd = EventFd::new(EFD_NONBLOCK).map_err(InterruptError::EventFd)?;
        self.links
            .link_irq(&eventfd, gsi)
            .map_err(|source| InterruptError::Link { gsi, source })?;
        Ok(eventfd)
    }

    fn install(&self, vectors: &Vectors, gsi: u32) -> Result<(), InterruptError> {
        let routes: Vec<_> = pin_routes()
            .chain(
                vectors
                    .iter()
                    .filter_map(|(&gsi, message)| message.map(|message| msi_route(gsi, message))),
            )
            .collect();
        self.links
            .set_routes(&routes)
            .map_err(|source| InterruptError::Route { gsi, source })
    }

    fn lock(&self) -> MutexGuard<'_, Vectors> {
        // A panicking holder leaves a table that is still whole: every change is one assignment.
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pin_routes() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..PIC_PINS).map(|gsi| {
        if gsi < 8 {
            irqchip_route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)
        } else {
            irqchip_route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)
        }
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| irqchip_route(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic)
}

fn irqchip_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address_lo,
        address_hi: message.address_hi,
        data: message.data,
        ..Default::default()
    };
    entry
}

/// Eventfds without a KVM behind them, for tests of what uses [`EventLinks`].
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::os::fd::AsRawFd;

    /// Remembers what is linked, and refuses what KVM would refuse.
    #[derive(Debug, Default)]
    pub struct FakeLinks {
        state: Mutex<State>,
    }

    #[derive(Debug, Default)]
    struct State {
        routes: usize,
        routings: usize,
        irqs: BTreeMap<u32, i32>,
        doorbells: BTreeMap<u64, i32>,
    }

    impl FakeLinks {
        /// Number of routes in the table that was given last.
        pub fn routes(&self) -> usize {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .routes
        }

        /// How many times a table was given.
        pub fn routings(&self) -> usize {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .routings
        }

        /// Addresses with a doorbell.
        pub fn doorbells(&self) -> Vec<u64> {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .doorbells
                .keys()
                .copied()
                .collect()
        }

        /// Interrupts with an eventfd.
        pub fn irqs(&self) -> Vec<u32> {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .irqs
                .keys()
                .copied()
                .collect()
        }
    }

    impl EventLinks for FakeLinks {
        fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()> {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.routes = routes.len();
            state.routings += 1;
            Ok(())
        }

        fn link_irq(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .irqs
                .insert(gsi, fd.as_raw_fd());
            Ok(())
        }

        fn unlink_irq(&self, _fd: &EventFd, gsi: u32) -> io::Result<()> {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state
                .irqs
                .remove(&gsi)
                .map(drop)
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn link_doorbell(&self, fd: &EventFd, address: u64) -> io::Result<()> {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.doorbells.contains_key(&address) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.doorbells.insert(address, fd.as_raw_fd());
            Ok(())
        }

        fn unlink_doorbell(&self, _fd: &EventFd, address: u64) -> io::Result<()> {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state
                .doorbells
                .remove(&address)
                .map(drop)
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeLinks;
    use super::*;

    #[test]
    fn vectors_start_above_the_pins_and_are_reused_once_released() {
        let links = Arc::new(FakeLinks::default());
        let interrupts = Interrupts::new(links.clone());
        let first = interrupts.allocate_msi().unwrap();
        let second = interrupts.allocate_msi().unwrap();
        assert_eq!((first.gsi, second.gsi), (24, 25));
        interrupts.release_msi(&first).unwrap();
        assert_eq!(links.irqs(), [25]);
        assert_eq!(interrupts.allocate_msi().unwrap().gsi, 24);
    }

    #[test]
    fn a_message_is_routed_beside_all_pins_and_only_when_it_changes() {
        let links = Arc::new(FakeLinks::default());
        let interrupts = Interrupts::new(links.clone());
        let vector = interrupts.allocate_msi().unwrap();
        assert_eq!(links.routings(), 0);
        interrupts.set(vector.gsi, 0xfee0_0000, 0, 0x41).unwrap();
        interrupts.set(vector.gsi, 0xfee0_0000, 0, 0x41).unwrap();
        assert_eq!(links.routings(), 1);
        assert_eq!(links.routes(), 16 + 24 + 1);
        interrupts.set(vector.gsi, 0xfee0_1000, 0, 0x41).unwrap();
        assert_eq!(links.routings(), 2);
    }

    #[test]
    fn only_known_interrupts_can_be_named() {
        let interrupts = Interrupts::new(Arc::new(FakeLinks::default()));
        assert!(interrupts.set(30, 0, 0, 0).is_err());
        assert_eq!(
            interrupts.pin(24).unwrap_err().to_string(),
            "interrupt 24 is not one of the 24 pins"
        );
        assert!(interrupts.pin(4).is_ok());
    }

    #[test]
    fn vectors_run_out_with_an_error() {
        // Each vector costs a descriptor; the table is filled directly.
        let interrupts = Interrupts::new(Arc::new(FakeLinks::default()));
        interrupts
            .lock()
            .extend((IOAPIC_PINS..IOAPIC_PINS + MSI_MAX).map(|gsi| (gsi, None)));
        assert!(matches!(
            interrupts.allocate_msi(),
            Err(InterruptError::NoVectorLeft)
        ));
    }
}
