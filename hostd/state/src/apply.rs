//! The only place that judges.

use api::ids::{TaskId, UserId};
use api::units::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::change::Change;
use crate::command::{Command, Meta};
use crate::refused::Refused;
use crate::state::State;

/// What the caller is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The object that was made or worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Uuid>,
    /// The task that will tell how it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// This is the answer to an earlier request with the same idempotency key; nothing was done now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

/// A command that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What the caller is answered.
    pub outcome: Outcome,
    /// What became different.
    pub changes: Vec<Change>,
}

/// A request with an idempotency key that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Whose key.
    pub by: Option<UserId>,
    /// The key.
    pub key: String,
    /// What it stood for.
    pub digest: String,
    /// When it was answered.
    pub at: Millis,
    /// What was answered.
    pub outcome: Outcome,
}

impl State {
    /// Carries out one command, or refuses it and changes nothing but the audit ring.
    ///
    /// `revision` is the command's place in the log and larger than any before.
    pub fn apply(
        &mut self,
        revision: u64,
        meta: &Meta,
        command: &Command,
    ) -> Result<Applied, Refused> {
        let _ = (meta, command);
        self.revision = revision;
        Err(Refused::new(
            api::ErrorCode::NotImplemented,
            "not built yet",
            "wait for the next commit",
        ))
    }
}
