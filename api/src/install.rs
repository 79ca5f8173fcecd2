//! Installing onto a disk. These calls answer only on a machine that was booted from a medium.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::hosts::DiskInfo;
use crate::names::Name;
use crate::system::NetworkSettings;
use crate::units::Percent;

/// `POST /install`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallRequest {
    /// The disk: kernel name (`nvme0n1`), `/dev/…` path or serial number. Must name exactly one disk.
    pub disk: String,
    /// Consent to erase: must name the same disk when it is not blank.
    #[serde(default)]
    pub erase: Option<String>,
    /// The host's name; `lqx-` and the end of a MAC address when absent.
    #[serde(default)]
    pub hostname: Option<Name>,
    /// Its addresses; DHCP when absent.
    #[serde(default)]
    pub network: Option<NetworkSettings>,
    /// Check everything, write nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// The steps, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstallStep {
    /// Find the medium and the disk; check sizes and consent.
    Check,
    /// Write the partition table.
    Partition,
    /// Make the file systems.
    Format,
    /// Copy loader and UKI.
    Copy,
    /// Read back and compare.
    Verify,
    /// Write name and addresses to the state partition.
    Configure,
    /// Make it bootable: the last write.
    Activate,
    /// Restart from the disk.
    Reboot,
}

/// Where the installer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstallPhase {
    /// Waiting for an answer.
    Waiting,
    /// Working.
    Running {
        /// At this step.
        step: InstallStep,
        /// How far, over all steps.
        progress: Percent,
        /// A sentence.
        detail: String,
    },
    /// Failed at this step; the machine can be installed again.
    Failed {
        /// At this step.
        step: InstallStep,
        /// Why.
        error: ApiError,
    },
    /// Done; the machine restarts.
    Done,
}

/// `GET /install`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstallStatus {
    /// The version on the medium.
    pub version: String,
    /// The disks of this machine.
    pub disks: Vec<DiskInfo>,
    /// Where the installer is.
    pub phase: InstallPhase,
}
