//! People, programs and their tokens.

use api::ids::{TokenId, UserId};
use api::names::Name;
use api::units::Millis;
use api::users::{Role, Secret, TokenKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::table::Record;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// PHC string.
    pub password_hash: Secret,
    /// When it was made.
    pub created_at: Millis,
}

impl Record for UserRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
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
    /// SHA-256 of its secret, hexadecimal.
    pub hash: Secret,
    /// When it was made.
    pub created_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
}
