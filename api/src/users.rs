//! People, programs, their sessions and tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{AuditId, TokenId, UserId};
use crate::names::Name;
use crate::units::Millis;

/// Shortest password, in characters.
pub const PASSWORD_LEN_MIN: usize = 10;
/// Longest password, in bytes: a bound on hashing work.
pub const PASSWORD_LEN_MAX: usize = 1024;

/// A text that never prints. It is serialised only into the one body it belongs to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Look, and work with VMs, volumes, images.
    Operator,
    /// Everything.
    Admin,
}

/// `POST /setup`: enrols the first administrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetupRequest {
    /// The one-time token shown on the machine's console. Not needed on the local console's socket.
    pub token: Secret,
    /// The administrator's name.
    pub name: Name,
    /// The administrator's password, [`PASSWORD_LEN_MIN`] characters or more.
    pub password: Secret,
}

/// `GET /setup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetupStatus {
    /// An administrator exists.
    pub done: bool,
    /// The one-time token; only on the local console's socket, only while not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// `POST /sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionCreate {
    /// User name.
    pub name: Name,
    /// Password.
    pub password: Secret,
}

/// `POST /tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// What it is for.
    pub name: Name,
    /// At most the caller's own role.
    pub role: Role,
    /// Days until it ends, 1 to 3650.
    pub days: u32,
}

/// A fresh bearer token: the only time its secret is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// Its id.
    pub id: TokenId,
    /// Send it as `Authorization: Bearer …`.
    pub secret: Secret,
    /// When it ends.
    pub expires_at: Millis,
}

/// Session or API token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Made by signing in.
    Session,
    /// Made for a program.
    Api,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Its kind.
    pub kind: TokenKind,
    /// What it is for.
    pub name: Name,
    /// Whose.
    pub user: UserId,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
}

/// A user, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: Name,
    /// Its role.
    pub role: Role,
    /// When it was made.
    pub created_at: Millis,
}

/// `POST /users`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserCreate {
    /// Unique among users.
    pub name: Name,
    /// Password, [`PASSWORD_LEN_MIN`] characters or more.
    pub password: Secret,
    /// What they may do.
    pub role: Role,
}

/// Who did what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Its id.
    pub id: AuditId,
    /// When.
    pub at: Millis,
    /// Who: a user's name, `console`, or `host`.
    pub who: String,
    /// From where: an address, or `console`.
    pub from: String,
    /// The endpoint's name.
    pub action: String,
    /// The object's name or id as given.
    pub object: String,
    /// `ok`, or the error code.
    pub outcome: String,
    /// The request id.
    pub request_id: String,
}
