//! A network's record.

use api::condition::Condition;
use api::ids::{NetworkId, TaskId};
use api::names::Name;
use api::networks::{NetworkKind, NetworkPhase};
use api::units::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::table::Record;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    pub kind: NetworkKind,
    /// Its phase.
    pub phase: NetworkPhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for NetworkRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}
