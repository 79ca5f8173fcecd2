//! A volume: what a pool holds and a guest sees as a disk.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::condition::Condition;
use crate::ids::{HostId, ImageId, VmId, VolumeId};
use crate::names::{Name, Ref};
use crate::units::{Mib, Millis};

/// Largest volume.
pub const SIZE_MAX: Mib = Mib(64 * 1024 * 1024);

/// `POST /volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// Unique among volumes.
    pub name: Name,
    /// Its size. With `from_image`: at least the image's; of a qcow2 image, the size of the disk inside.
    pub size: Mib,
    /// Filled from this disk image.
    #[serde(default)]
    pub from_image: Option<Ref>,
}

/// `PATCH /volumes/{volume}`: a volume grows, also while VMs have it; it never shrinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeUpdate {
    /// Refused with `revision_conflict` when the volume has changed since.
    #[serde(default)]
    pub revision: Option<u64>,
    /// What it is to have; more than it has. File systems on it are the guest's to grow.
    pub size: Mib,
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumePhase {
    /// Being made or filled.
    Creating,
    /// May be used.
    Ready,
    /// Could not be made; `condition` says why.
    Failed,
    /// Being removed.
    Deleting,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// The host that holds it.
    pub host: HostId,
    /// Its size.
    pub size: Mib,
    /// The size it is to have, while it grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growing_to: Option<Mib>,
    /// The image it was filled from.
    pub from_image: Option<ImageId>,
    /// Its phase.
    pub phase: VolumePhase,
    /// The VM it belongs to, if any.
    pub attached_to: Option<VmId>,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}
