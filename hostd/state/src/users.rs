//! People, programs and their tokens.

use api::ErrorCode;
use api::events::{ChangeOp, Noun};
use api::ids::{TokenId, UserId};
use api::names::Name;
use api::units::Millis;
use api::users::{Role, Secret, TokenKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apply::{Outcome, Step};
use crate::refused::Refused;
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

/// Most sessions of a user; the one that ends first makes room for another.
pub const SESSIONS_MAX: usize = 64;
/// Most API tokens of a user.
pub const API_TOKENS_MAX: usize = 256;

/// The first administrator. Once.
pub(crate) fn setup(
    step: &mut Step<'_>,
    id: UserId,
    name: &Name,
    password_hash: &Secret,
) -> Result<Outcome, Refused> {
    if step.state.setup_done() {
        return Err(Refused::new(
            ErrorCode::SetupDone,
            "setup was done already",
            "sign in; an administrator can add users",
        ));
    }
    user_put(step, id, name, Role::Admin, password_hash);
    Ok(Outcome::object(id.0))
}

/// Another user.
pub(crate) fn user_create(
    step: &mut Step<'_>,
    id: UserId,
    name: &Name,
    role: Role,
    password_hash: &Secret,
) -> Result<Outcome, Refused> {
    if !step.state.setup_done() {
        return Err(Refused::new(
            ErrorCode::SetupRequired,
            "no administrator exists yet",
            "do the setup first",
        ));
    }
    Step::fresh(&step.state.users, "user", id.0, name)?;
    user_put(step, id, name, role, password_hash);
    Ok(Outcome::object(id.0))
}

fn user_put(step: &mut Step<'_>, id: UserId, name: &Name, role: Role, password_hash: &Secret) {
    step.changed(Noun::User, id.0, ChangeOp::Put);
    step.state.users.put(UserRecord {
        id,
        name: name.clone(),
        role,
        password_hash: password_hash.clone(),
        created_at: step.at,
    });
}

/// Removes a user and its tokens. An administrator is always left.
pub(crate) fn user_delete(step: &mut Step<'_>, id: UserId) -> Result<Outcome, Refused> {
    let user = step.state.user(id);
    let user = user.ok_or_else(|| Refused::not_found("user", id))?;
    let admins = step.state.users().filter(|u| u.role == Role::Admin).count();
    if user.role == Role::Admin && admins == 1 {
        return Err(Refused::in_use(
            format!("`{}` is the last administrator", user.name),
            "make another administrator first",
        ));
    }
    let its = step.state.tokens().filter(|t| t.user == id);
    for token in its.map(|t| t.id).collect::<Vec<_>>() {
        token_remove(step, token);
    }
    step.state.users.remove(id.0);
    step.changed(Noun::User, id.0, ChangeOp::Deleted);
    Ok(Outcome::object(id.0))
}

/// A session or API token. Sweeps the tokens that have ended.
pub(crate) fn token_create(step: &mut Step<'_>, token: TokenRecord) -> Result<Outcome, Refused> {
    let user = step.state.user(token.user);
    let user = user.ok_or_else(|| Refused::not_found("user", token.user))?;
    if token.role > user.role {
        return Err(Refused::new(
            ErrorCode::Forbidden,
            format!("a token of `{}` may not do more than its user", user.name),
            "ask for the user's own role, or a lesser one",
        ));
    }
    if token.expires_at <= step.at {
        return Err(Refused::invalid(
            "the token would have ended already",
            "choose a later end, and check the host's clock",
        ));
    }
    if step.state.tokens.contains_key(&token.id)
        || step.state.token_hashes.contains_key(&token.hash.0)
    {
        return Err(Refused::exists("token", token.id));
    }
    let now = step.at;
    let ended = step.state.tokens().filter(|t| t.expires_at <= now);
    let mut ended: Vec<TokenId> = ended.map(|t| t.id).collect();
    let same = step
        .state
        .tokens()
        .filter(|t| t.user == token.user && t.kind == token.kind && t.expires_at > now);
    let mut same: Vec<(Millis, TokenId)> = same.map(|t| (t.expires_at, t.id)).collect();
    match token.kind {
        TokenKind::Session => {
            same.sort_unstable();
            let over = (same.len() + 1).saturating_sub(SESSIONS_MAX);
            ended.extend(same.into_iter().take(over).map(|(_, id)| id));
        }
        TokenKind::Api if same.len() >= API_TOKENS_MAX => {
            return Err(Refused::exhausted(
                format!("`{}` has {API_TOKENS_MAX} API tokens already", user.name),
                "revoke those that are not used any more",
            ));
        }
        TokenKind::Api => {}
    }
    for id in ended {
        token_remove(step, id);
    }
    let id = token.id;
    step.changed(Noun::Token, id.0, ChangeOp::Put);
    step.state.token_hashes.insert(token.hash.0.clone(), id);
    step.state.tokens.insert(id, token);
    Ok(Outcome::object(id.0))
}

/// Ends a token.
pub(crate) fn token_revoke(step: &mut Step<'_>, id: TokenId) -> Result<Outcome, Refused> {
    if step.state.token(id).is_none() {
        return Err(Refused::not_found("token", id));
    }
    token_remove(step, id);
    Ok(Outcome::object(id.0))
}

fn token_remove(step: &mut Step<'_>, id: TokenId) {
    if let Some(token) = step.state.tokens.remove(&id) {
        step.state.token_hashes.remove(&token.hash.0);
        step.changed(Noun::Token, id.0, ChangeOp::Deleted);
    }
}
