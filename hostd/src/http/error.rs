//! Every refusal as code, sentence, hint and status.

use api::{ApiError, ErrorCode};
use axum::http::StatusCode;

/// The status that goes with a code.
pub fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadRequest | ErrorCode::ChecksumMismatch => StatusCode::BAD_REQUEST,
        ErrorCode::Invalid | ErrorCode::ImageUnusable | ErrorCode::ConsentRequired => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden | ErrorCode::SetupRequired => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Exists
        | ErrorCode::InUse
        | ErrorCode::WrongPhase
        | ErrorCode::RevisionConflict
        | ErrorCode::IdempotencyMismatch
        | ErrorCode::NotReady
        | ErrorCode::SetupDone
        | ErrorCode::NotInstalled
        | ErrorCode::WrongMode => StatusCode::CONFLICT,
        ErrorCode::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Gone => StatusCode::GONE,
        ErrorCode::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The request cannot be understood.
pub fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::new(
        ErrorCode::BadRequest,
        message,
        "see /api/v1/openapi.json for what is understood",
    )
}

/// No such object.
pub fn not_found(noun: &str, which: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no {noun} `{which}`"),
        format!("list the {noun}s to see which there are"),
    )
}

/// Our fault. What went wrong goes to the log, not over the wire.
pub fn internal(what: &'static str, error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, what, "a request failed for a reason of ours");
    ApiError::new(
        ErrorCode::Internal,
        what,
        "look at the host's log for the request id",
    )
}
