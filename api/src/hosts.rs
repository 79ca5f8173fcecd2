//! A machine of the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::condition::Condition;
use crate::ids::HostId;
use crate::names::Name;
use crate::units::Mib;

/// What a machine has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Inventory {
    /// CPU model, as the CPU says.
    pub cpu_model: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Mib,
    /// KVM works.
    pub kvm: bool,
    /// Vendor and product, from SMBIOS.
    pub product: String,
    /// Disks.
    pub disks: Vec<DiskInfo>,
    /// NICs.
    pub nics: Vec<NicInfo>,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DiskInfo {
    /// Kernel name, for instance `nvme0n1`.
    pub name: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Model.
    pub model: String,
    /// Serial number; empty when it has none.
    pub serial: String,
    /// Can be taken out.
    pub removable: bool,
    /// What is on it, in words: `blank`, `limiquantix install 0190…`, `partition table (3 partitions)`, `ext4 file system`.
    pub content: String,
    /// Nothing is on it.
    pub blank: bool,
}

/// A NIC of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NicInfo {
    /// Kernel name.
    pub name: String,
    /// MAC address.
    pub mac: String,
    /// Cable plugged and link up.
    pub carrier: bool,
    /// IPv4 and IPv6 addresses with prefix length.
    pub addresses: Vec<String>,
}

/// Where a host is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostPhase {
    /// Serving.
    Up,
    /// Not heard of.
    Silent,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Its phase.
    pub phase: HostPhase,
    /// The version it runs.
    pub version: String,
    /// What it has.
    pub inventory: Inventory,
    /// SHA-256 of its TLS certificate, hexadecimal.
    pub fingerprint: String,
    /// Guest memory promised to running VMs.
    pub memory_promised: Mib,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The revision of its last change.
    pub revision: u64,
}
