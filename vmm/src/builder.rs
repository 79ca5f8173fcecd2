//! From plan and descriptors to a live machine: the one place that names every device.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::arch::x86_64::acpi::PciPlaces;
use crate::arch::x86_64::boot::{self, Entry, EntryError};
use crate::arch::x86_64::cpuid::{self, VcpuIdentity};
use crate::arch::x86_64::{acpi, firmware, layout, msrs};
use crate::bus::{Bus, BusClaimError, SharedDevice};
use crate::config::Boot;
use crate::devices::debug_port::DebugPort;
use crate::devices::flash::{Flash, Window};
use crate::devices::fw_cfg::{FwCfg, FwCfgDma, FwCfgPorts, ItemError};
use crate::devices::i8042::{self, I8042};
use crate::devices::power::Power;
use crate::devices::rtc::{self, Rtc};
use crate::devices::serial::Com1;
use crate::devices::virtio::block::Resizer;
use crate::devices::virtio::transport::TransportError;
use crate::devices::virtio::{self, CreateDeviceError, VirtioPci};
use crate::event_loop::Wake;
use crate::fds::{self, TakeFdError};
use crate::interrupt::{InterruptError, Interrupts};
use crate::loader::firmware::{self as flash, FirmwareError};
use crate::loader::kernel::{self, Kernel, KernelError};
use crate::machine::{ISA_SLOT, MachinePlan, PlanError, SlotDevice};
use crate::memory::{self, Chip, GuestMemory, MemoryError, ReadOnlySlot};
use crate::metrics::{Counter, Registry};
use crate::pci::q35::{EcamPlace, HostBridge, IsaBridge, Q35Memory};
use crate::pci::root::{ConfigPorts, Ecam, MemoryWindow, PciRoot, SlotError};
use crate::seccomp::{SeccompError, ThreadKind};
use crate::vcpu::{Buses, VcpuError, Vcpus};
use crate::vm::ExitSignal;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration cannot be a machine.
    #[error("the VM configuration is refused")]
    Plan(#[from] PlanError),
    /// A descriptor is missing.
    #[error(transparent)]
    Fd(#[from] TakeFdError),
    /// KVM refused a step.
    #[error("KVM refused to {what}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The host's processor cannot address the machine.
    #[error("the host addresses {host_bits} bits of physical memory, too few for this guest")]
    AddressBits {
        /// What it can.
        host_bits: u8,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No kernel.
    #[error("could not load the kernel")]
    Kernel(#[from] KernelError),
    /// No firmware.
    #[error("could not load the firmware")]
    Firmware(#[from] FirmwareError),
    /// The firmware cannot be told about the machine.
    #[error(transparent)]
    FirmwareItems(#[from] ItemError),
    /// No ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// No CPUID.
    #[error("the host's CPUID has too many leaves")]
    Cpuid,
    /// No MSRs.
    #[error(transparent)]
    Msrs(#[from] msrs::MsrError),
    /// No registers.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A device could not be made.
    #[error(transparent)]
    Device(#[from] CreateDeviceError),
    /// A device could not be made a PCI function.
    #[error("could not put device `{id}` on the PCI bus")]
    Transport {
        /// Which.
        id: String,
        /// Why.
        source: TransportError,
    },
    /// No interrupt for COM1.
    #[error("could not wire the interrupt of COM1")]
    Interrupt(#[from] InterruptError),
    /// Two devices in one place.
    #[error(transparent)]
    Bus(#[from] BusClaimError),
    /// Two devices in one slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// An eventfd or epoll descriptor is missing.
    #[error("could not set up the event loop")]
    EventLoop(#[source] io::Error),
    /// No vCPU threads.
    #[error(transparent)]
    Vcpus(#[from] VcpuError),
    /// No filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |errno| BuildError::Kvm {
        what,
        source: errno.into(),
    }
}

/// A built machine. Fields are dropped in this order: vCPUs first, memory last.
pub struct Machine {
    /// The vCPUs, paused until [`Self::first_run`].
    pub vcpus: Vcpus,
    /// COM1.
    pub com1: Arc<Mutex<Com1>>,
    /// Rings when COM1 has output.
    pub com1_wake: Wake,
    /// The power button.
    pub power: Arc<Mutex<Power<Arc<VmFd>>>>,
    /// The ways to let the disks grow, in the disks' order.
    pub disks: Vec<Resizer>,
    /// Rings when the guest has ended.
    pub exit: ExitSignal,
    metrics: Registry,
    started: Instant,
    first_run: Counter,
    _buses: Arc<Buses>,
    _vm: Arc<VmFd>,
    _memory: Arc<GuestMemory>,
}

impl Machine {
    /// Lets the vCPUs run, for the first time.
    pub fn first_run(&self) {
        self.first_run
            .add(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.vcpus.resume();
    }

    /// All counters now.
    pub fn read_metrics(&self) -> BTreeMap<String, u64> {
        self.metrics.read()
    }
}

/// Builds everything but the event loop. `started` is when the process began, for the record.
pub fn build(plan: &MachinePlan, started: Instant) -> Result<Machine, BuildError> {
    let kvm = fds::take_kvm(plan.config.kvm_fd)?;
    let metrics = Registry::default();
    let exit = ExitSignal::new().map_err(BuildError::EventLoop)?;

    let vm = create_vm(&kvm)?;
    let memory = Arc::new(memory::create(&plan.ram)?);
    memory::register(&vm, &memory)?;
    let entry = load(plan, &memory)?;
    let vcpus = create_vcpus(&kvm, &vm, plan, &memory, entry)?;

    let interrupts = Arc::new(Interrupts::new(vm.clone()));
    let com1_line = interrupts.pin(layout::COM1_GSI)?;
    let com1_wake = Wake::new().map_err(BuildError::EventLoop)?;
    let com1 = Arc::new(Mutex::new(Com1::new(
        com1_line,
        com1_wake.clone(),
        &metrics,
    )));
    let power = Power::new(Arc::clone(&vm), exit.clone());
    let power = if plan.has_firmware() {
        power.with_firmware()
    } else {
        power
    };
    let power = Arc::new(Mutex::new(power));
    let ecam = EcamPlace::default();
    let mut root = if plan.has_firmware() {
        PciRoot::with_bridge(Box::new(HostBridge::new(ecam.clone())), &metrics)
    } else {
        PciRoot::new(&metrics)
    };
    let disks = plug_devices(plan, &mut root, &vm, &memory, &interrupts, &metrics)?;
    if plan.has_firmware() {
        root.plug(ISA_SLOT, Box::new(IsaBridge::new()))?;
    }
    let root = Arc::new(root);

    let (rtc, i8042) = if plan.has_firmware() {
        let rtc = Rtc::new(SystemTime::now).with_memory(plan.low_ram_end(), plan.high_ram());
        (rtc, I8042::without_keyboard(exit.clone()))
    } else {
        (Rtc::new(SystemTime::now), I8042::new(exit.clone()))
    };
    let mut pio = Bus::new("pio", &metrics);
    let ports: [(u16, u64, Arc<dyn SharedDevice>); 5] = [
        (layout::COM1_PORT, 8, com1.clone()),
        (layout::PM_PORT, u64::from(layout::PM_PORTS), power.clone()),
        (
            layout::PCI_CONFIG_PORT,
            8,
            Arc::new(Mutex::new(ConfigPorts::new(
                Arc::clone(&root),
                exit.clone(),
            ))),
        ),
        (rtc::PORT, 2, Arc::new(Mutex::new(rtc))),
        (i8042::COMMAND_PORT, 1, Arc::new(Mutex::new(i8042))),
    ];
    for (port, size, device) in ports {
        pio.claim(u64::from(port), size, device)?;
    }
    let mut mmio = Bus::new("mmio", &metrics);
    let window = |start| {
        Arc::new(MemoryWindow {
            root: Arc::clone(&root),
            start,
        })
    };
    match plan.config.boot {
        Boot::Kernel { .. } => {
            mmio.claim(plan.mmio64, layout::MMIO64_SIZE, window(plan.mmio64))?;
            mmio.claim(layout::MMIO32, layout::MMIO32_SIZE, window(layout::MMIO32))?;
            mmio.claim(layout::ECAM, layout::ECAM_SIZE, Arc::new(Ecam(root)))?;
        }
        Boot::Firmware { code_fd, vars_fd } => {
            let start = layout::FIRMWARE_LOW_RAM;
            let size = layout::FIRMWARE_MMIO32_END - start;
            let above_ram = plan.mmio64..layout::ADDRESS_END;
            mmio.claim(
                plan.mmio64,
                above_ram.end - plan.mmio64,
                window(plan.mmio64),
            )?;
            let places = {
                let (plan, root, ecam) = (plan.clone(), Arc::clone(&root), ecam.clone());
                move || {
                    let bars = root.decoded(above_ram.clone());
                    PciPlaces::around(&plan, ecam.get().unwrap_or(layout::ECAM), bars)
                }
            };
            let pci = Q35Memory { root, ecam, start };
            mmio.claim(start, size, Arc::new(pci))?;
            let device = firmware::config_device(plan, places, Arc::clone(&memory), &metrics)?;
            claim_firmware_ports(&mut pio, device, &metrics)?;
            put_flash(&mut mmio, &vm, (code_fd, vars_fd), &metrics)?;
        }
    }

    let kind = if plan.has_firmware() {
        ThreadKind::FlashVcpu
    } else {
        ThreadKind::Vcpu
    };
    let buses = Arc::new(Buses { pio, mmio });
    let vcpus = Vcpus::start(vcpus, kind, &buses, &exit, &metrics)?;
    let first_run = metrics.counter("start_to_first_instruction_us");
    Ok(Machine {
        vcpus,
        com1,
        com1_wake,
        power,
        disks,
        exit,
        metrics,
        started,
        first_run,
        _buses: buses,
        _vm: vm,
        _memory: memory,
    })
}

/// What only firmware asks for.
fn claim_firmware_ports(
    pio: &mut Bus,
    device: FwCfg,
    metrics: &Registry,
) -> Result<(), BusClaimError> {
    let device = Arc::new(Mutex::new(device));
    let ports = FwCfgPorts(Arc::clone(&device));
    let debug = Arc::new(Mutex::new(DebugPort::new(metrics)));
    pio.claim(u64::from(layout::DEBUG_PORT), 1, debug)?;
    pio.claim(
        u64::from(layout::FW_CFG_PORT),
        2,
        Arc::new(Mutex::new(ports)),
    )?;
    let dma = Arc::new(Mutex::new(FwCfgDma(device)));
    pio.claim(u64::from(layout::FW_CFG_DMA_PORT), 8, dma)
}

impl Window for ReadOnlySlot {
    fn open(&mut self, open: bool) -> io::Result<()> {
        Self::open(self, open)
    }
}

/// Writes to the code; the chip is protected.
struct Protected(#[expect(dead_code, reason = "keeps the slot")] ReadOnlySlot);

impl SharedDevice for Protected {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// The two flash chips: code, and variables over their volume.
fn put_flash(
    mmio: &mut Bus,
    vm: &Arc<VmFd>,
    (code, variables): (i32, i32),
    metrics: &Registry,
) -> Result<(), BuildError> {
    let mut code = File::from(fds::take("the firmware's code", code)?);
    let volume = File::from(fds::take("the firmware's variables", variables)?);
    let (code, variables) = flash::load(&mut code, &volume)?;
    let slot = ReadOnlySlot::new(Arc::clone(vm), code.memory, Chip::Code)?;
    mmio.claim(code.start, code.size, Arc::new(Protected(slot)))?;
    let memory = Arc::clone(&variables.memory);
    let window = ReadOnlySlot::new(Arc::clone(vm), variables.memory, Chip::Variables)?;
    let places = (variables.start, variables.size);
    let chip = Flash::new(memory, places, window, volume, metrics);
    mmio.claim(places.0, places.1, Arc::new(Mutex::new(chip)))?;
    Ok(())
}

/// Makes each device of the plan, its worker threads included, and puts it into its slot. Its counters are called
/// `disk.ID.…`, `nic.ID.…` and `rng.…`. Returns the ways to let the disks grow, in the disks' order.
fn plug_devices(
    plan: &MachinePlan,
    root: &mut PciRoot,
    vm: &Arc<VmFd>,
    memory: &Arc<GuestMemory>,
    interrupts: &Arc<Interrupts>,
    metrics: &Registry,
) -> Result<Vec<Resizer>, BuildError> {
    let (disks, nics) = (&plan.config.disks, &plan.config.nics);
    let mut resizers = Vec::with_capacity(disks.len());
    for planned in &plan.slots {
        let (id, device) = match planned.device {
            SlotDevice::Disk(index) => {
                let disk = &disks[index];
                let backing = disk.backing.iter().map(|image| image.fd);
                let below = backing.map(|fd| fds::take("a backing image", fd));
                let below = below.collect::<Result<_, _>>()?;
                let volume = fds::take("a disk", disk.fd)?;
                let (device, resizer) = virtio::block(disk, volume, below)?;
                resizers.push(resizer);
                (format!("disk.{}", disk.id), device)
            }
            SlotDevice::Nic(index) => {
                let nic = &nics[index];
                let taps = nic.tap_fds.iter().map(|fd| fds::take("a tap", *fd));
                let device = virtio::net(nic, taps.collect::<Result<_, _>>()?)?;
                (format!("nic.{}", nic.id), device)
            }
            SlotDevice::Rng => ("rng".to_owned(), virtio::rng()?),
        };
        let function = VirtioPci::new(
            device,
            Arc::clone(memory),
            vm.clone(),
            Arc::clone(interrupts),
            planned.bar_address,
        )
        .map_err(|source| BuildError::Transport {
            id: id.clone(),
            source,
        })?;
        for (name, counter) in function.counters() {
            metrics.insert(format!("{id}.{name}"), counter);
        }
        root.plug(planned.slot, Box::new(function))?;
    }
    Ok(resizers)
}

fn create_vm(kvm: &Kvm) -> Result<Arc<VmFd>, BuildError> {
    let vm = loop {
        // A signal can interrupt it; that is no reason to give up.
        match kvm.create_vm() {
            Err(errno) if errno.errno() == libc::EINTR => {}
            other => break other.map_err(refused("create a virtual machine"))?,
        }
    };
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(refused("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(refused("place its task state"))?;
    vm.create_irq_chip()
        .map_err(refused("create interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit)
        .map_err(refused("create an interval timer"))?;
    Ok(Arc::new(vm))
}

/// Puts tables, kernel and initial RAM disk into memory; the files are closed again at the end. Firmware needs none of
/// them: there is no entry but the reset vector.
fn load(plan: &MachinePlan, memory: &GuestMemory) -> Result<Option<Entry>, BuildError> {
    let Boot::Kernel {
        kernel_fd,
        initrd_fd,
        cmdline,
    } = &plan.config.boot
    else {
        return Ok(None);
    };
    let rsdp = acpi::write(memory, plan)?;
    let mut kernel = File::from(fds::take("the kernel", *kernel_fd)?);
    let mut initrd = match initrd_fd {
        Some(fd) => Some(File::from(fds::take("the initial RAM disk", *fd)?)),
        None => None,
    };
    let boot = Kernel {
        kernel: &mut kernel,
        initrd: initrd.as_mut(),
        cmdline,
        rsdp,
    };
    Ok(Some(kernel::load(memory, plan, boot)?))
}

/// vCPU 0 stands at the kernel's entry, or as after a reset; the others wait for its start-up interrupt.
fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    plan: &MachinePlan,
    memory: &GuestMemory,
    entry: Option<Entry>,
) -> Result<Vec<VcpuFd>, BuildError> {
    let host = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("list the processor's features"))?;
    let host_bits = cpuid::physical_bits(&host);
    if host_bits < 64 && plan.address_end() > 1 << host_bits {
        return Err(BuildError::AddressBits { host_bits });
    }
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::with_capacity(usize::from(plan.config.vcpus));
    for id in 0..plan.config.vcpus {
        let vcpu = vm
            .create_vcpu(u64::from(id))
            .map_err(refused("create a vCPU"))?;
        let mut own = host.clone();
        cpuid::filter(
            &mut own,
            VcpuIdentity {
                id,
                vcpus: plan.config.vcpus,
                tsc_deadline,
            },
        );
        vcpu.set_cpuid2(&own)
            .map_err(refused("set the features of a vCPU"))?;
        // Firmware sets the registers itself, and begins where KVM leaves a new vCPU: at the reset vector.
        if let Some(entry) = entry {
            msrs::set(&vcpu)?;
            if id == 0 {
                boot::enter(&vcpu, memory, entry)?;
            }
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
