//! Operations longer than a request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::error::ApiError;
use crate::ids::{TaskId, UserId};
use crate::units::{Millis, Percent};

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Starting a VM.
    VmStart,
    /// Stopping a VM.
    VmStop,
    /// Killing a VM.
    VmKill,
    /// Rebooting a VM.
    VmReboot,
    /// Removing a VM.
    VmDelete,
    /// Making a volume.
    VolumeCreate,
    /// Growing a volume.
    VolumeGrow,
    /// Removing a volume.
    VolumeDelete,
    /// Making a network.
    NetworkCreate,
    /// Removing a network.
    NetworkDelete,
    /// Receiving an image.
    ImageUpload,
    /// Removing an image.
    ImageDelete,
}

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskPhase {
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Ended without what was asked.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// The object it works on.
    pub object: Uuid,
    /// Who asked.
    pub by: Option<UserId>,
    /// Where it is.
    pub phase: TaskPhase,
    /// How far.
    pub progress: Percent,
    /// When it began.
    pub created_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// The revision of its last change.
    pub revision: u64,
}
