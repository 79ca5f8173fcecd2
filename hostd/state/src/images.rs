//! An image's record.

use api::condition::Condition;
use api::ids::{HostId, ImageId, TaskId};
use api::images::{ImageKind, ImagePhase};
use api::names::Name;
use api::units::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::table::Record;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: ImageKind,
    /// The host that holds it.
    pub host: HostId,
    /// Its promised length.
    pub size_bytes: u64,
    /// Its promised SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Its phase.
    pub phase: ImagePhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for ImageRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}
