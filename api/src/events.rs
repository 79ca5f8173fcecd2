//! What the event stream (`GET /events`, server-sent events) carries.
//!
//! Each event's `id:` is the revision; a client that reconnects with `Last-Event-ID` (or `?since=`) misses nothing.
//! When that revision is too old, the answer is `gone`: list again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Which noun changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Noun {
    /// A VM.
    Vm,
    /// A volume.
    Volume,
    /// A network.
    Network,
    /// An image.
    Image,
    /// A host.
    Host,
    /// A task.
    Task,
    /// A user.
    User,
    /// A token.
    Token,
    /// An audit record.
    Audit,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOp {
    /// It is new or different.
    Put,
    /// It is gone.
    Deleted,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The revision that made it.
    pub revision: u64,
    /// Which noun.
    pub noun: Noun,
    /// Which object.
    pub id: Uuid,
    /// What became of it.
    pub op: ChangeOp,
}
