//! Every refusal: a stable code, a sentence, a hint.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The stable codes. A client branches on these, never on the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request could not be parsed: JSON, field names, types.
    BadRequest,
    /// A field's value is outside its range or contradicts another.
    Invalid,
    /// No or wrong credentials.
    Unauthenticated,
    /// Known caller, not allowed.
    Forbidden,
    /// No such object or path.
    NotFound,
    /// The path exists, not with this method.
    MethodNotAllowed,
    /// Something of that name exists already.
    Exists,
    /// The object is in use by another.
    InUse,
    /// Not in this phase (for instance: delete a running VM).
    WrongPhase,
    /// The object changed since the revision the caller gave.
    RevisionConflict,
    /// The same idempotency key was used for another request.
    IdempotencyMismatch,
    /// Not enough memory, CPUs or space.
    Exhausted,
    /// A volume or image is not ready yet.
    NotReady,
    /// The uploaded bytes do not have the promised checksum or length.
    ChecksumMismatch,
    /// The uploaded bytes are the promised ones, but no image of the kind they were said to be that can be used.
    ImageUnusable,
    /// The body, a header or the number of connections is over its limit.
    TooLarge,
    /// Too many attempts; wait.
    RateLimited,
    /// The appliance is not enrolled yet: no administrator exists.
    SetupRequired,
    /// Setup was done already.
    SetupDone,
    /// The machine runs the installer; only installation calls answer.
    NotInstalled,
    /// Only on an installed system or only in install mode, the other one.
    WrongMode,
    /// Consent to erase the disk is missing or names another disk.
    ConsentRequired,
    /// Events before this revision are gone: list again.
    Gone,
    /// Not built yet.
    NotImplemented,
    /// No leader, shutting down, or overloaded; try again.
    Unavailable,
    /// Took too long; the outcome is unknown, ask again with the same idempotency key.
    Timeout,
    /// Our fault; the log has more under the request id.
    Internal,
}

/// What a refused call gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The stable code.
    pub code: ErrorCode,
    /// A sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Found again in the log and the audit records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ApiError {
    /// A refusal without a request id; the HTTP layer fills that in.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
            request_id: None,
        }
    }
}
