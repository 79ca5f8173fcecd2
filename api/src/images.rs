//! Images: kernels, initramfs and disks that were uploaded.
//!
//! `POST /images` makes the record, `PUT /images/{image}/content` streams the bytes; only when their length and
//! SHA-256 are the promised ones the image becomes ready.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::condition::Condition;
use crate::ids::{HostId, ImageId};
use crate::names::Name;
use crate::units::Millis;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// A bzImage or ELF kernel.
    Kernel,
    /// An initramfs.
    Initrd,
    /// A disk, in the format that was said.
    Disk,
}

/// How the bytes of a disk image are to be understood. Its uploader says so; it is never guessed from the bytes, which
/// whoever wrote them could have made look like anything.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    #[default]
    Raw,
    /// A complete qcow2 image: without backing file, external data file, encryption, and any compression but zlib.
    Qcow2,
}

/// `POST /images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    /// Unique among images.
    pub name: Name,
    /// What it is.
    pub kind: ImageKind,
    /// Other than `raw` only for a disk.
    #[serde(default)]
    pub format: ImageFormat,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

/// Where an image is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImagePhase {
    /// Waiting for its bytes.
    Uploading,
    /// Verified.
    Ready,
    /// The bytes are gone or damaged; `condition` says why.
    Failed,
    /// Being removed.
    Deleting,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: ImageKind,
    /// How its bytes are understood.
    pub format: ImageFormat,
    /// The host that holds it.
    pub host: HostId,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The size of the disk inside a qcow2 image, once that has been verified. A volume made from it is at least so large.
    pub virtual_bytes: Option<u64>,
    /// Its SHA-256.
    pub sha256: String,
    /// Its phase.
    pub phase: ImagePhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}
