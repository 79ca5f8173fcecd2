//! The machine as planned: a checked [`VmmConfig`], with addresses and slots assigned. Pure; nothing is opened here.

use crate::arch::x86_64::layout;
use crate::config::{Boot, CMDLINE_MAX, MEMORY_MAX_MIB, MEMORY_MIN_MIB, VCPUS_MAX, VmmConfig};

/// Slots of the root bus that can hold a device; slot 0 is the host bridge.
pub const SLOTS_MAX: usize = 31;
/// The slot of the bridge to the ISA bus, which only a machine with firmware has.
pub const ISA_SLOT: u8 = 31;
/// A virtio-blk serial number is 20 bytes (virtio 1.3 §5.2.6.2).
pub const DISK_SERIAL_MAX: usize = 20;
/// The smallest MTU IPv4 allows (RFC 791).
pub const MTU_MIN: u16 = 68;

/// What is in a slot; the number is the index in the configuration's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotDevice {
    /// `disks[n]`.
    Disk(usize),
    /// `nics[n]`.
    Nic(usize),
    /// The entropy source.
    Rng,
}

/// A device on the root bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPlan {
    /// Device number, 1 to 31.
    pub slot: u8,
    /// What it is.
    pub device: SlotDevice,
    /// Where its first BAR is before the guest moves it.
    pub bar_address: u64,
}

/// A run of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// First guest physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// A checked, laid out machine.
#[derive(Debug, Clone)]
pub struct MachinePlan {
    /// What was asked.
    pub config: VmmConfig,
    /// RAM, one or two ranges, ascending.
    pub ram: Vec<RamRange>,
    /// Where the 64-bit PCI window begins.
    pub mmio64: u64,
    /// The devices, ascending by slot.
    pub slots: Vec<SlotPlan>,
}

/// Why a configuration is not a machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The guest has too little or too much RAM.
    #[error("memory is {mib} MiB; it must be between {MEMORY_MIN_MIB} and {MEMORY_MAX_MIB} MiB")]
    Memory {
        /// As asked.
        mib: u64,
    },
    /// The number of vCPUs is out of range.
    #[error("{vcpus} vCPUs; there must be between 1 and {VCPUS_MAX}")]
    Vcpus {
        /// As asked.
        vcpus: u8,
    },
    /// The command line does not fit or holds a NUL.
    #[error("the kernel command line is longer than {} bytes or contains a NUL", CMDLINE_MAX - 1)]
    Cmdline,
    /// More devices than slots.
    #[error("{devices} devices; the root bus has room for {room}")]
    Slots {
        /// As asked.
        devices: usize,
        /// As many as fit.
        room: usize,
    },
    /// A disk's serial number is too long.
    #[error("the serial number of disk `{id}` is longer than {DISK_SERIAL_MAX} bytes")]
    DiskSerial {
        /// Which.
        id: String,
    },
    /// A device's rate limits make no sense.
    #[error("the limits of `{id}`: {what}")]
    Limits {
        /// Which device.
        id: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A NIC has no queue, a group address or an MTU below IPv4's minimum.
    #[error("NIC `{id}`: {what}")]
    Nic {
        /// Which.
        id: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Two parts of the configuration name the same descriptor.
    #[error("descriptor {fd} is named twice")]
    FdTwice {
        /// Which.
        fd: i32,
    },
}

impl MachinePlan {
    /// Checks `config` and lays the machine out.
    pub fn new(config: VmmConfig) -> Result<Self, PlanError> {
        if !(MEMORY_MIN_MIB..=MEMORY_MAX_MIB).contains(&config.memory_mib) {
            return Err(PlanError::Memory {
                mib: config.memory_mib,
            });
        }
        if config.vcpus == 0 || config.vcpus > VCPUS_MAX {
            return Err(PlanError::Vcpus {
                vcpus: config.vcpus,
            });
        }
        if let Boot::Kernel { cmdline, .. } = &config.boot
            && (cmdline.len() >= CMDLINE_MAX || cmdline.contains('\0'))
        {
            return Err(PlanError::Cmdline);
        }
        for disk in &config.disks {
            if disk.serial.len() > DISK_SERIAL_MAX {
                return Err(PlanError::DiskSerial {
                    id: disk.id.clone(),
                });
            }
        }
        let limits = config.disks.iter().map(|disk| (&disk.id, &disk.limits));
        let nics = config.nics.iter();
        let limits = limits.chain(nics.flat_map(|nic| {
            [&nic.receive_limits, &nic.transmit_limits].map(|limits| (&nic.id, limits))
        }));
        for (id, limits) in limits {
            if let Some(what) = limits.fault() {
                let id = id.clone();
                return Err(PlanError::Limits { id, what });
            }
        }
        for nic in &config.nics {
            let wrong = |what| PlanError::Nic {
                id: nic.id.clone(),
                what,
            };
            if nic.tap_fds.is_empty() {
                return Err(wrong("it has no tap"));
            }
            if nic.mac[0] & 1 != 0 {
                return Err(wrong("its hardware address is a group address"));
            }
            if nic.mtu < MTU_MIN {
                return Err(wrong("its MTU is below 68"));
            }
        }
        check_fds(&config)?;
        let slots = plan_slots(&config)?;

        let bytes = config.memory_mib << 20;
        let low = match config.boot {
            Boot::Kernel { .. } => bytes.min(layout::MMIO32),
            Boot::Firmware { .. } if bytes <= layout::FIRMWARE_ECAM_MIN => bytes,
            Boot::Firmware { .. } => layout::FIRMWARE_LOW_RAM,
        };
        let mut ram = vec![RamRange {
            start: 0,
            size: low,
        }];
        let mut top = layout::RAM_ABOVE_4G;
        if bytes > low {
            ram.push(RamRange {
                start: layout::RAM_ABOVE_4G,
                size: bytes - low,
            });
            top += bytes - low;
        }
        Ok(Self {
            config,
            ram,
            mmio64: top.next_multiple_of(layout::MMIO64_ALIGN),
            slots,
        })
    }

    /// Whether firmware comes before everything else.
    pub fn has_firmware(&self) -> bool {
        matches!(self.config.boot, Boot::Firmware { .. })
    }

    /// Bytes of RAM above 4 GiB.
    pub fn high_ram(&self) -> u64 {
        self.ram.get(1).map_or(0, |range| range.size)
    }

    /// End of RAM below 4 GiB.
    pub fn low_ram_end(&self) -> u64 {
        self.ram.first().map_or(0, |range| range.size)
    }

    /// The address above everything the machine decodes.
    pub fn address_end(&self) -> u64 {
        self.mmio64 + layout::MMIO64_SIZE
    }
}

fn plan_slots(config: &VmmConfig) -> Result<Vec<SlotPlan>, PlanError> {
    let devices = (0..config.disks.len())
        .map(SlotDevice::Disk)
        .chain((0..config.nics.len()).map(SlotDevice::Nic))
        .chain(config.rng.then_some(SlotDevice::Rng));
    let slots: Vec<SlotPlan> = (1u8..)
        .zip(devices)
        .map(|(slot, device)| SlotPlan {
            slot,
            device,
            bar_address: layout::MMIO32 + u64::from(slot) * layout::SLOT_WINDOW,
        })
        .collect();
    let devices = config.disks.len() + config.nics.len() + usize::from(config.rng);
    let room = match config.boot {
        Boot::Kernel { .. } => SLOTS_MAX,
        Boot::Firmware { .. } => usize::from(ISA_SLOT) - 1,
    };
    if devices > room {
        return Err(PlanError::Slots { devices, room });
    }
    Ok(slots)
}

/// Each descriptor is taken over once, so each number may appear once.
fn check_fds(config: &VmmConfig) -> Result<(), PlanError> {
    let mut fds = vec![
        config.kvm_fd,
        config.control_fd,
        config.serial_fd,
        config.status_fd,
    ];
    match config.boot {
        Boot::Kernel {
            kernel_fd,
            initrd_fd,
            ..
        } => {
            fds.push(kernel_fd);
            fds.extend(initrd_fd);
        }
        Boot::Firmware { code_fd, vars_fd } => fds.extend([code_fd, vars_fd]),
    }
    for disk in &config.disks {
        fds.push(disk.fd);
        fds.extend(disk.backing.iter().map(|below| below.fd));
    }
    fds.extend(config.nics.iter().flat_map(|nic| &nic.tap_fds));
    fds.sort_unstable();
    match fds.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PlanError::FdTwice { fd: pair[0] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, DiskFormat, NicConfig, RateLimits};

    fn asked() -> VmmConfig {
        VmmConfig {
            name: "t".into(),
            memory_mib: 256,
            vcpus: 1,
            boot: Boot::Kernel {
                kernel_fd: 10,
                initrd_fd: None,
                cmdline: String::new(),
            },
            disks: vec![DiskConfig {
                id: "d".into(),
                fd: 11,
                format: DiskFormat::Raw,
                backing: vec![],
                read_only: false,
                serial: String::new(),
                limits: RateLimits::default(),
            }],
            nics: vec![NicConfig {
                id: "n".into(),
                tap_fds: vec![12],
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                receive_limits: RateLimits::default(),
                transmit_limits: RateLimits::default(),
            }],
            rng: true,
            kvm_fd: 3,
            control_fd: 4,
            serial_fd: 5,
            status_fd: 6,
        }
    }

    #[test]
    fn small_memory_lies_below_the_pci_window_and_large_memory_is_split() {
        let plan = MachinePlan::new(asked()).unwrap();
        assert_eq!(
            plan.ram,
            [RamRange {
                start: 0,
                size: 256 << 20
            }]
        );
        assert_eq!(plan.mmio64, 4 << 30);
        let plan = MachinePlan::new(VmmConfig {
            memory_mib: 4096,
            ..asked()
        })
        .unwrap();
        assert_eq!(plan.ram[0].size, 3 << 30);
        assert_eq!(
            plan.ram[1],
            RamRange {
                start: 4 << 30,
                size: 1 << 30
            }
        );
        assert_eq!(plan.mmio64, 5 << 30);
    }

    #[test]
    fn limits_that_let_nothing_through_are_refused() {
        for limits in [
            r#"{"bytes_per_second":0}"#,
            r#"{"bytes_per_second":5,"bytes_burst":0}"#,
            r#"{"operations_burst":5}"#,
            r#"{"operations_per_second":5,"bytes_burst":5}"#,
        ] {
            let limits: RateLimits = serde_json::from_str(limits).unwrap();
            for place in 0..3 {
                let mut config = asked();
                match place {
                    0 => config.disks[0].limits = limits,
                    1 => config.nics[0].receive_limits = limits,
                    _ => config.nics[0].transmit_limits = limits,
                }
                let error = MachinePlan::new(config).unwrap_err();
                assert!(matches!(error, PlanError::Limits { .. }), "{limits:?}");
            }
        }
    }

    #[test]
    fn firmware_finds_its_configuration_space_above_ram() {
        let with = |memory_mib| {
            let boot = Boot::Firmware {
                code_fd: 20,
                vars_fd: 21,
            };
            MachinePlan::new(VmmConfig {
                memory_mib,
                boot,
                ..asked()
            })
            .unwrap()
        };
        assert_eq!(with(2816).low_ram_end(), 2816 << 20);
        assert_eq!(with(2817).low_ram_end(), 2 << 30);
        assert_eq!(with(2817).high_ram(), (2817 - 2048) << 20);
        let twice = VmmConfig {
            boot: Boot::Firmware {
                code_fd: 20,
                vars_fd: 20,
            },
            ..asked()
        };
        assert_eq!(
            MachinePlan::new(twice).unwrap_err(),
            PlanError::FdTwice { fd: 20 }
        );
    }

    #[test]
    fn devices_take_slots_from_one_upward_with_distinct_windows() {
        let plan = MachinePlan::new(asked()).unwrap();
        let devices: Vec<_> = plan.slots.iter().map(|s| (s.slot, s.device)).collect();
        assert_eq!(
            devices,
            [
                (1, SlotDevice::Disk(0)),
                (2, SlotDevice::Nic(0)),
                (3, SlotDevice::Rng)
            ]
        );
        assert!(
            plan.slots
                .windows(2)
                .all(|w| w[0].bar_address + layout::SLOT_WINDOW == w[1].bar_address)
        );
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_a_reason() {
        let refused = |change: fn(&mut VmmConfig)| {
            let mut config = asked();
            change(&mut config);
            MachinePlan::new(config).unwrap_err().to_string()
        };
        assert!(refused(|c| c.memory_mib = 8).contains("8 MiB"));
        assert!(refused(|c| c.memory_mib = u64::MAX).contains("MiB"));
        assert!(refused(|c| c.vcpus = 0).contains("0 vCPUs"));
        assert!(refused(|c| c.vcpus = 255).contains("255 vCPUs"));
        assert!(refused(|c| c.disks[0].serial = "x".repeat(21)).contains("serial"));
        assert!(refused(|c| c.nics[0].tap_fds.clear()).contains("no tap"));
        assert!(refused(|c| c.nics[0].mac[0] = 1).contains("group"));
        assert!(refused(|c| c.disks[0].fd = 3).contains("named twice"));
        assert!(
            refused(|c| {
                c.disks = (0..31)
                    .map(|n| DiskConfig {
                        id: "d".into(),
                        fd: 100 + n,
                        format: DiskFormat::Raw,
                        backing: vec![],
                        read_only: false,
                        serial: String::new(),
                        limits: RateLimits::default(),
                    })
                    .collect();
            })
            .contains("33 devices")
        );
        assert!(
            refused(|c| {
                c.boot = Boot::Kernel {
                    kernel_fd: 10,
                    initrd_fd: None,
                    cmdline: "x".repeat(2048),
                };
            })
            .contains("command line")
        );
    }
}
