//! Why an object is not well, and what happens next.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::units::Millis;

/// Carried by every object that is not as its user wanted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Stable, `snake_case`, documented in `docs/api.md`.
    pub code: String,
    /// A sentence: what happened.
    pub cause: String,
    /// Since when.
    pub since: Millis,
    /// A sentence: what the system does next by itself, or what an administrator can do.
    pub next: String,
}
