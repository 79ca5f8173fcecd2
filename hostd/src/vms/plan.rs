//! From a VM's record to the VMM's configuration: the only place where the two vocabularies meet. Pure.

use std::os::fd::RawFd;

use api::ids::{ImageId, NetworkId, VmId, VolumeId};
use api::limits::{NicLimits, RateLimits};
use api::vms::Boot;
use hostd_state::VmRecord;
use vmm::config::{self, DiskConfig, DiskFormat, NicConfig, VmmConfig};

/// The frame size every network of ours has.
pub const MTU: u16 = 1500;

/// A VM to be started, checked; names are still ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPlan {
    /// Which.
    pub vm: VmId,
    /// Under which generation.
    pub generation: u64,
    /// Its name.
    pub name: String,
    /// Guest RAM.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// How it boots.
    pub boot: PlannedBoot,
    /// The command line of a kernel.
    pub cmdline: String,
    /// Disks, in guest order.
    pub disks: Vec<PlannedDisk>,
    /// NICs, in guest order.
    pub nics: Vec<PlannedNic>,
}

/// What a VM begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedBoot {
    /// A kernel.
    Kernel {
        /// Its image.
        kernel: ImageId,
        /// The initramfs.
        initrd: Option<ImageId>,
    },
    /// UEFI firmware.
    Firmware,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDisk {
    /// Its volume.
    pub volume: VolumeId,
    /// The guest may not write.
    pub read_only: bool,
    /// How much the guest may ask of it.
    pub limits: RateLimits,
}

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedNic {
    /// Its network.
    pub network: NetworkId,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The name of its tap on this host.
    pub tap: String,
    /// How much it carries.
    pub limits: NicLimits,
}

/// A record that can not be started. `apply` lets none through; this is the second lock.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not a hardware address.
    #[error("`{0}` is not a MAC address")]
    Mac(String),
}

/// What to start for this record.
///
/// # Errors
/// A record that contradicts itself.
pub fn plan(record: &VmRecord) -> Result<VmPlan, PlanError> {
    let (boot, cmdline) = match record.boot.clone() {
        Boot::Kernel {
            kernel,
            initrd,
            cmdline,
        } => (PlannedBoot::Kernel { kernel, initrd }, cmdline),
        Boot::Firmware {} => (PlannedBoot::Firmware, String::new()),
    };
    let disks = record.disks.iter();
    let nics = record.nics.iter().enumerate().map(|(index, nic)| {
        let mac = parse_mac(&nic.mac).ok_or_else(|| PlanError::Mac(nic.mac.clone()))?;
        Ok(PlannedNic {
            network: nic.network,
            mac,
            tap: tap_name(record.id, index),
            limits: nic.limits,
        })
    });
    Ok(VmPlan {
        vm: record.id,
        generation: record.generation,
        name: record.name.as_str().to_owned(),
        memory_mib: record.memory.0,
        vcpus: record.vcpus,
        boot,
        cmdline,
        disks: disks
            .map(|disk| PlannedDisk {
                volume: disk.volume,
                read_only: disk.read_only,
                limits: disk.limits,
            })
            .collect(),
        nics: nics.collect::<Result<_, PlanError>>()?,
    })
}

/// `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Names on the host are short (IFNAMSIZ, 15 characters) while ids are long: the random end of the id, then which NIC.
fn tap_name(vm: VmId, nic: usize) -> String {
    let tail = &vm.0.as_bytes()[11..];
    let hex: String = tail.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t{hex}{nic:x}")
}

/// The descriptors of what a child boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootNumbers {
    /// A kernel.
    Kernel {
        /// The kernel.
        kernel: RawFd,
        /// The initramfs.
        initrd: Option<RawFd>,
    },
    /// Firmware.
    Firmware {
        /// Its code.
        code: RawFd,
        /// Its variables.
        variables: RawFd,
    },
}

/// The descriptors a child is given beside disks and taps, by number in the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// `/dev/kvm`.
    pub kvm: RawFd,
    /// The listening control socket.
    pub control: RawFd,
    /// The listening serial socket.
    pub serial: RawFd,
    /// The status file.
    pub status: RawFd,
    /// What it boots with.
    pub boot: BootNumbers,
    /// The volumes.
    pub disks: Vec<RawFd>,
    /// The taps.
    pub taps: Vec<RawFd>,
}

impl VmPlan {
    /// The VMM's configuration, once the numbers of the descriptors are known.
    pub fn config(&self, fds: &Numbers) -> VmmConfig {
        let disks = self.disks.iter().zip(&fds.disks).enumerate();
        let nics = self.nics.iter().zip(&fds.taps).enumerate();
        VmmConfig {
            name: self.name.clone(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            boot: match fds.boot {
                BootNumbers::Kernel { kernel, initrd } => config::Boot::Kernel {
                    kernel_fd: kernel,
                    initrd_fd: initrd,
                    cmdline: self.cmdline.clone(),
                },
                BootNumbers::Firmware { code, variables } => config::Boot::Firmware {
                    code_fd: code,
                    vars_fd: variables,
                },
            },
            disks: disks
                .map(|(index, (disk, fd))| DiskConfig {
                    id: format!("disk{index}"),
                    fd: *fd,
                    format: DiskFormat::Raw,
                    backing: vec![],
                    read_only: disk.read_only,
                    serial: disk_serial(disk.volume),
                    limits: limits(&disk.limits),
                })
                .collect(),
            nics: nics
                .map(|(index, (nic, fd))| NicConfig {
                    id: format!("nic{index}"),
                    tap_fds: vec![*fd],
                    mac: nic.mac,
                    mtu: MTU,
                    receive_limits: limits(&nic.limits.receive),
                    transmit_limits: limits(&nic.limits.transmit),
                })
                .collect(),
            rng: true,
            kvm_fd: fds.kvm,
            control_fd: fds.control,
            serial_fd: fds.serial,
            status_fd: fds.status,
        }
    }
}

fn limits(limits: &RateLimits) -> config::RateLimits {
    config::RateLimits {
        bytes_per_second: limits.bytes_per_second,
        bytes_burst: limits.bytes_burst,
        operations_per_second: limits.operations_per_second,
        operations_burst: limits.operations_burst,
    }
}

/// What the guest reads as the disk's serial number (20 bytes at most, virtio 1.3 §5.2.6): the volume's id without its
/// dashes, cut to the random end, so that it is the same in every VM the volume is given to.
fn disk_serial(volume: VolumeId) -> String {
    let hex = volume.0.simple().to_string();
    hex[hex.len() - 20..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_six_bytes_in_hexadecimal() {
        assert_eq!(
            parse_mac("02:00:5e:10:00:ff"),
            Some([2, 0, 0x5e, 0x10, 0, 0xff])
        );
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:5e:10:0:ff",
            "02:00:5e:10:00:fg",
            "+2:00:5e:10:00:ff",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn limits_reach_the_vm_process() {
        let limits = |value| RateLimits {
            bytes_per_second: Some(value),
            bytes_burst: Some(value + 1),
            operations_per_second: Some(value + 2),
            operations_burst: Some(value + 3),
        };
        let plan = VmPlan {
            vm: VmId::mint(),
            generation: 1,
            name: "web".into(),
            memory_mib: 64,
            vcpus: 1,
            boot: PlannedBoot::Firmware,
            cmdline: String::new(),
            disks: vec![PlannedDisk {
                volume: VolumeId::mint(),
                read_only: false,
                limits: limits(10),
            }],
            nics: vec![PlannedNic {
                network: NetworkId::mint(),
                mac: [2, 0, 0, 0, 0, 1],
                tap: "t".into(),
                limits: NicLimits {
                    receive: limits(20),
                    transmit: limits(30),
                },
            }],
        };
        let config = plan.config(&Numbers {
            kvm: 3,
            control: 4,
            serial: 5,
            status: 6,
            boot: BootNumbers::Firmware {
                code: 7,
                variables: 8,
            },
            disks: vec![9],
            taps: vec![10],
        });
        let (disk, nic) = (&config.disks[0], &config.nics[0]);
        for (limits, value) in [
            (disk.limits, 10),
            (nic.receive_limits, 20),
            (nic.transmit_limits, 30),
        ] {
            let numbers = [
                limits.bytes_per_second,
                limits.bytes_burst,
                limits.operations_per_second,
                limits.operations_burst,
            ];
            assert_eq!(numbers, [0, 1, 2, 3].map(|more| Some(value + more)));
        }
    }

    #[test]
    fn names_on_the_host_fit_and_differ() {
        let vm = VmId::mint();
        let names: Vec<String> = (0..api::vms::DEVICES_MAX)
            .map(|nic| tap_name(vm, nic))
            .collect();
        assert!(names.iter().all(|name| name.len() <= 15));
        assert_ne!(names[0], names[1]);
        assert_ne!(names[0], tap_name(VmId::mint(), 0));
        assert_eq!(disk_serial(VolumeId::mint()).len(), 20);
    }
}
