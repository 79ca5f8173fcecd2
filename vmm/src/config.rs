//! What to build, as asked: the JSON document a supervisor hands to a VM process together with open descriptors.
//!
//! Descriptors are plain numbers here, valid in the process that calls [`crate::run`]; each is taken over exactly once.
//! Nothing is checked beyond the shape: that is [`crate::machine`]'s work.

use serde::{Deserialize, Serialize};

/// The smallest guest that is accepted, in MiB.
pub const MEMORY_MIN_MIB: u64 = 16;
/// The largest guest that is accepted, in MiB (1 TiB).
pub const MEMORY_MAX_MIB: u64 = 1 << 20;
/// The most vCPUs of one guest: xAPIC identifiers are eight bits wide and 255 is the broadcast.
pub const VCPUS_MAX: u8 = 128;
/// The longest kernel command line, terminator included (`COMMAND_LINE_SIZE` of x86 Linux).
pub const CMDLINE_MAX: usize = 2048;

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// The name for messages and thread names.
    pub name: String,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
    /// Number of virtual processors.
    pub vcpus: u8,
    /// What runs first.
    pub boot: Boot,
    /// Disks in slot order.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in slot order, after the disks.
    #[serde(default)]
    pub nics: Vec<NicConfig>,
    /// Whether the guest gets a virtio entropy source.
    #[serde(default)]
    pub rng: bool,
    /// `/dev/kvm`, opened read-write.
    pub kvm_fd: i32,
    /// A listening unix stream socket that speaks [`crate::control`].
    pub control_fd: i32,
    /// A listening unix stream socket; each connection is a view of COM1.
    pub serial_fd: i32,
    /// A regular file, rewritten with one JSON [`crate::control::Status`] (and blanks) at every change, so that a daemon that was
    /// away learns how the machine ended.
    pub status_fd: i32,
}

/// How the guest starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Boot {
    /// A Linux kernel (bzImage, or ELF with a PVH note) is put into RAM and entered directly.
    Kernel {
        /// The kernel file.
        kernel_fd: i32,
        /// The initial RAM disk, if there is one.
        #[serde(default)]
        initrd_fd: Option<i32>,
        /// The kernel command line.
        cmdline: String,
    },
    /// UEFI firmware made for QEMU's Q35 machine (OVMF) starts at the reset vector and finds what to boot by itself.
    Firmware {
        /// The firmware's code, up to the last byte below 4 GiB; opened read-only and copied.
        code_fd: i32,
        /// The store of its variables, a volume of the machine, opened read-write. It fills the flash from the next
        /// power of two above the code's size, and may be longer.
        vars_fd: i32,
    },
}

/// How the bytes of a volume are to be understood. Never guessed from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Offset on the disk is offset in the file.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// An image below another one, open for reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingConfig {
    /// The file.
    pub fd: i32,
    /// Its format.
    #[serde(default)]
    pub format: DiskFormat,
}

/// How much a device may do; what is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// On average; a disk's reads and writes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// At once, after a rest; what one second gives if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<u64>,
    /// On average: requests to a disk, frames of a NIC. A segment that is cut later is one frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    /// At once, after a rest; what one second gives if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_burst: Option<u64>,
}

impl RateLimits {
    /// What is wrong with them, if anything is.
    pub fn fault(&self) -> Option<&'static str> {
        let numbers = [
            self.bytes_per_second,
            self.bytes_burst,
            self.operations_per_second,
            self.operations_burst,
        ];
        if numbers.contains(&Some(0)) {
            return Some("a limit of 0 would let nothing through");
        }
        let lonely = |rate: Option<u64>, burst: Option<u64>| rate.is_none() && burst.is_some();
        if lonely(self.bytes_per_second, self.bytes_burst)
            || lonely(self.operations_per_second, self.operations_burst)
        {
            return Some("a burst has no rate");
        }
        None
    }
}

/// A disk as the guest sees it, over an open file or block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Name in metrics and messages.
    pub id: String,
    /// The volume, opened read-write, or read-only for a read-only disk.
    pub fd: i32,
    /// What the volume holds.
    #[serde(default)]
    pub format: DiskFormat,
    /// What lies below a qcow2 image, each below the one before it. The names in the images are not followed.
    #[serde(default)]
    pub backing: Vec<BackingConfig>,
    /// Whether the guest may write.
    #[serde(default)]
    pub read_only: bool,
    /// Serial number the guest reads, at most 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// How much the guest may ask of it.
    #[serde(default)]
    pub limits: RateLimits,
}

/// A network interface over a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// Name in metrics and messages.
    pub id: String,
    /// Tap queues, one per queue pair, opened with `IFF_VNET_HDR`.
    pub tap_fds: Vec<i32>,
    /// Hardware address the guest sees.
    pub mac: [u8; 6],
    /// Largest frame payload in bytes.
    pub mtu: u16,
    /// How much it receives; directions are the guest's.
    #[serde(default)]
    pub receive_limits: RateLimits,
    /// How much it sends.
    #[serde(default)]
    pub transmit_limits: RateLimits,
}

/// The document is not a machine description.
#[derive(Debug, thiserror::Error)]
#[error("the VM configuration is not valid")]
pub struct ConfigParseError(#[from] serde_json::Error);

impl VmmConfig {
    /// Reads the JSON form; unknown fields are refused.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigParseError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> VmmConfig {
        VmmConfig {
            name: "web".into(),
            memory_mib: 256,
            vcpus: 2,
            boot: Boot::Kernel {
                kernel_fd: 10,
                initrd_fd: Some(11),
                cmdline: "console=ttyS0".into(),
            },
            disks: vec![DiskConfig {
                id: "root".into(),
                fd: 12,
                format: DiskFormat::Raw,
                backing: vec![],
                read_only: false,
                serial: "r1".into(),
                limits: RateLimits {
                    bytes_per_second: Some(1 << 20),
                    bytes_burst: Some(1 << 22),
                    ..RateLimits::default()
                },
            }],
            nics: vec![NicConfig {
                id: "lan".into(),
                tap_fds: vec![13],
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                receive_limits: RateLimits::default(),
                transmit_limits: RateLimits {
                    operations_per_second: Some(1000),
                    ..RateLimits::default()
                },
            }],
            rng: true,
            kvm_fd: 3,
            control_fd: 4,
            serial_fd: 5,
            status_fd: 6,
        }
    }

    #[test]
    fn a_config_survives_the_trip_through_json() {
        let json = serde_json::to_vec(&example()).unwrap();
        assert_eq!(VmmConfig::from_json(&json).unwrap(), example());
    }

    #[test]
    fn firmware_is_another_way_to_boot() {
        let mut value = serde_json::to_value(example()).unwrap();
        value["boot"] = serde_json::json!({"firmware": {"code_fd": 20, "vars_fd": 21}});
        let config = VmmConfig::from_json(value.to_string().as_bytes()).unwrap();
        assert_eq!(
            config.boot,
            Boot::Firmware {
                code_fd: 20,
                vars_fd: 21
            }
        );
    }

    #[test]
    fn a_device_without_limits_needs_no_word_about_them() {
        let mut value = serde_json::to_value(example()).unwrap();
        value["disks"][0].as_object_mut().unwrap().remove("limits");
        value["nics"][0]
            .as_object_mut()
            .unwrap()
            .remove("transmit_limits");
        let config = VmmConfig::from_json(value.to_string().as_bytes()).unwrap();
        assert_eq!(config.disks[0].limits, RateLimits::default());
        assert_eq!(config.nics[0].transmit_limits, RateLimits::default());
    }

    #[test]
    fn unknown_fields_are_refused_at_every_level() {
        let mut value = serde_json::to_value(example()).unwrap();
        value["disks"][0]["cache"] = "unsafe".into();
        assert!(VmmConfig::from_json(value.to_string().as_bytes()).is_err());
        let mut value = serde_json::to_value(example()).unwrap();
        value["disks"][0]["limits"]["iops"] = 1.into();
        assert!(VmmConfig::from_json(value.to_string().as_bytes()).is_err());
        let mut value = serde_json::to_value(example()).unwrap();
        value["boot"]["kernel"]["path"] = "/boot".into();
        assert!(VmmConfig::from_json(value.to_string().as_bytes()).is_err());
        let mut value = serde_json::to_value(example()).unwrap();
        value["uuid"] = 1.into();
        assert!(VmmConfig::from_json(value.to_string().as_bytes()).is_err());
    }
}
