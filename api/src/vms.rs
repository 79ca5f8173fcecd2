//! A VM: what is wanted, what is observed, what may be done.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::condition::Condition;
use crate::ids::{HostId, ImageId, NetworkId, VmId, VolumeId};
use crate::limits::{NicLimits, RateLimits};
use crate::names::{Name, Ref};
use crate::units::{Mib, Millis};

/// Most vCPUs of a VM.
pub const VCPUS_MAX: u8 = 64;
/// Least and most guest memory.
pub const MEMORY_MIN: Mib = Mib(32);
/// Most guest memory.
pub const MEMORY_MAX: Mib = Mib(4 * 1024 * 1024);
/// Most disks and most NICs of a VM.
pub const DEVICES_MAX: usize = 16;
/// Longest kernel command line, bytes (Linux x86 COMMAND_LINE_SIZE is 2048 including the terminator).
pub const CMDLINE_LEN_MAX: usize = 2047;
/// The machine type a new VM gets; a VM keeps the one it was created with.
pub const MACHINE_TYPE: &str = "q35-lqx-1";

/// How a VM boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BootSpec {
    /// Direct kernel boot from uploaded images.
    Kernel {
        /// A bzImage or ELF image.
        kernel: Ref,
        /// An initramfs.
        #[serde(default)]
        initrd: Option<Ref>,
        /// The kernel's command line; at most [`CMDLINE_LEN_MAX`] bytes.
        #[serde(default)]
        cmdline: String,
    },
    /// UEFI firmware, which finds what to boot on the disks. Its variables, the boot order among them, are the VM's own
    /// and last as long as it does.
    Firmware {},
}

/// A disk wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The volume.
    pub volume: Ref,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// How much the guest may ask of it.
    #[serde(default, skip_serializing_if = "RateLimits::is_empty")]
    pub limits: RateLimits,
}

/// A NIC wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The network.
    pub network: Ref,
    /// Chosen by us when absent. Unicast, `aa:bb:cc:dd:ee:ff`.
    #[serde(default)]
    pub mac: Option<String>,
    /// How much it carries.
    #[serde(default, skip_serializing_if = "NicLimits::is_empty")]
    pub limits: NicLimits,
}

/// What happens when the guest crashes or its process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// It stays down and says why.
    #[default]
    Stay,
    /// It is started again.
    Restart,
}

/// `POST /vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Unique among VMs.
    pub name: Name,
    /// Guest memory.
    pub memory: Mib,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// How it boots.
    pub boot: BootSpec,
    /// Disks, in guest order.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// NICs, in guest order.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// After a crash.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// Started when its host starts.
    #[serde(default)]
    pub autostart: bool,
}

/// `PATCH /vms/{vm}`: what is absent stays. Only a stopped VM may change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// Refused with `revision_conflict` when the VM has changed since.
    #[serde(default)]
    pub revision: Option<u64>,
    /// A new name.
    #[serde(default)]
    pub name: Option<Name>,
    /// Guest memory.
    #[serde(default)]
    pub memory: Option<Mib>,
    /// vCPUs.
    #[serde(default)]
    pub vcpus: Option<u8>,
    /// Boot.
    #[serde(default)]
    pub boot: Option<BootSpec>,
    /// All disks.
    #[serde(default)]
    pub disks: Option<Vec<DiskSpec>>,
    /// All NICs.
    #[serde(default)]
    pub nics: Option<Vec<NicSpec>>,
    /// After a crash.
    #[serde(default)]
    pub on_crash: Option<OnCrash>,
    /// Started with its host.
    #[serde(default)]
    pub autostart: Option<bool>,
}

/// What its user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmIntent {
    /// Down.
    Stopped,
    /// Up.
    Running,
}

/// What its host observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmPhase {
    /// No process.
    Stopped,
    /// Wanted up; its process is being made.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand still, the process lives.
    Paused,
    /// Wanted down; the process still lives.
    Stopping,
    /// It ended otherwise than wanted, or could not start; `condition` says why.
    Failed,
    /// Being removed.
    Deleting,
}

/// How its last run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered itself off.
    GuestPowerOff,
    /// The guest reset itself.
    GuestReset,
    /// The guest's CPU shut down (triple fault).
    TripleFault,
    /// Stopped or killed on request.
    Stopped,
    /// Its process died.
    ProcessDied {
        /// Exit status or signal, in words.
        status: String,
    },
    /// The VMM reported an error.
    VmmError {
        /// Its message.
        message: String,
    },
    /// The host went down under it.
    HostDown,
}

/// A disk as the VM has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// The volume.
    pub volume: VolumeId,
    /// The guest may not write.
    pub read_only: bool,
    /// How much the guest may ask of it.
    #[serde(default, skip_serializing_if = "RateLimits::is_empty")]
    pub limits: RateLimits,
}

/// A NIC as the VM has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    /// The network.
    pub network: NetworkId,
    /// Its MAC address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// The address leased to it by the network's DHCP, if known. Not agreed, from the host that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How much it carries.
    #[serde(default, skip_serializing_if = "NicLimits::is_empty")]
    pub limits: NicLimits,
}

/// Boot, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// Direct kernel boot.
    Kernel {
        /// The kernel image.
        kernel: ImageId,
        /// The initramfs image.
        initrd: Option<ImageId>,
        /// The command line.
        cmdline: String,
    },
    /// UEFI firmware.
    Firmware {},
}

/// What may be done now, and if not why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Can {
    /// `start`, `stop`, `kill`, `reboot`, `update`, `delete`.
    pub action: String,
    /// Absent: it may be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Guest memory.
    pub memory: Mib,
    /// vCPUs.
    pub vcpus: u8,
    /// Its machine type, versioned.
    pub machine: String,
    /// Boot.
    pub boot: Boot,
    /// Disks.
    pub disks: Vec<Disk>,
    /// NICs.
    pub nics: Vec<Nic>,
    /// After a crash.
    pub on_crash: OnCrash,
    /// Started with its host.
    pub autostart: bool,
    /// The host that owns it.
    pub host: HostId,
    /// What is wanted.
    pub intent: VmIntent,
    /// What is.
    pub phase: VmPhase,
    /// Grows with every start; reports with an older one are void.
    pub generation: u64,
    /// How the last run ended.
    pub last_exit: Option<VmExit>,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// What may be done now.
    #[serde(default)]
    pub can: Vec<Can>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}
