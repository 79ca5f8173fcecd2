//! A volume's record.

use api::condition::Condition;
use api::ids::{HostId, ImageId, TaskId, VolumeId};
use api::names::Name;
use api::units::{Mib, Millis};
use api::volumes::VolumePhase;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::table::Record;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// The host that holds it.
    pub host: HostId,
    /// Its size.
    pub size: Mib,
    /// The image it is filled from.
    pub from_image: Option<ImageId>,
    /// Its phase.
    pub phase: VolumePhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for VolumeRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}
