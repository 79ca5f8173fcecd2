//! Why a command was not carried out: a stable code, a sentence, a hint.

use std::fmt;

use api::{ApiError, ErrorCode};
use serde::{Deserialize, Serialize};

/// A refusal. Nothing but the audit ring changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The stable code.
    pub code: ErrorCode,
    /// A sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Refused {
    /// A refusal of this code.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// No such object.
    pub fn not_found(noun: &str, which: impl fmt::Display) -> Self {
        Self::new(
            ErrorCode::NotFound,
            format!("there is no {noun} `{which}`"),
            format!("list the {noun}s to see which there are"),
        )
    }

    /// The name is taken.
    pub fn exists(noun: &str, which: impl fmt::Display) -> Self {
        Self::new(
            ErrorCode::Exists,
            format!("there is a {noun} `{which}` already"),
            "choose another name, or delete the one that is there",
        )
    }

    /// A value out of its range.
    pub fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message, hint)
    }

    /// Refuses a change of what has changed since it was `seen`.
    pub(crate) fn if_changed(
        noun: &str,
        which: impl fmt::Display,
        seen: Option<u64>,
        revision: u64,
    ) -> Result<(), Self> {
        if seen.is_none_or(|seen| seen == revision) {
            return Ok(());
        }
        Err(Self::new(
            ErrorCode::RevisionConflict,
            format!("{noun} `{which}` has changed: it is at revision {revision}"),
            "read it again and repeat the change on what it is now",
        ))
    }

    /// Somebody else needs it.
    pub fn in_use(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorCode::InUse, message, hint)
    }

    /// Not now.
    pub fn wrong_phase(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorCode::WrongPhase, message, hint)
    }

    /// Something it needs is not ready.
    pub fn not_ready(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotReady, message, hint)
    }

    /// There is not enough of something.
    pub fn exhausted(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorCode::Exhausted, message, hint)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        ApiError::new(refused.code, refused.message, refused.hint)
    }
}

/// The code as it stands on the wire and in the audit ring.
pub fn code_name(code: ErrorCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "internal".to_owned(),
    }
}

/// The code of that name, if there is one.
pub fn code_named(name: &str) -> Option<ErrorCode> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}
