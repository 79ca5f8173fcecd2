//! Images: kernels, initramfs and raw disks that were uploaded.
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
    /// A raw disk.
    Disk,
}

/// `POST /images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    /// Unique among images.
    pub name: Name,
    /// What it is.
    pub kind: ImageKind,
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
    /// The host that holds it.
    pub host: HostId,
    /// Its length in bytes.
    pub size_bytes: u64,
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
