//! Users, tokens, and who did what.

use std::time::Duration;

use api::endpoints::List;
use api::ids::{TokenId, UserId};
use api::users::{
    AuditRecord, Role, Token, TokenCreate, TokenCreated, TokenKind, User, UserCreate,
};
use api::{ApiError, ErrorCode};
use hostd_state::Command;

use super::setup::{after, fresh_secret, user};
use crate::auth::Caller;
use crate::http::call::{Call, Reply, object_of};
use crate::http::error::not_found;

/// Longest life of an API token.
const TOKEN_DAYS_MAX: u32 = 3650;
/// Most items of a list that is limited.
const LIMIT_MAX: u64 = 1000;
const LIMIT_DEFAULT: u64 = 100;

/// `?limit=`.
pub(super) fn limit(call: &Call) -> Result<usize, ApiError> {
    match call.query("limit").unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
        other => Err(ApiError::new(
            ErrorCode::Invalid,
            format!("`limit={other}` is out of range"),
            format!("ask for 1 to {LIMIT_MAX}"),
        )),
    }
}

/// An administrator's business is everybody's token; all others have their own only.
fn sees(caller: &Caller, owner: UserId) -> bool {
    caller.role() == Some(Role::Admin) || caller.user() == Some(owner)
}

pub(super) async fn token_list(call: Call) -> Result<Reply, ApiError> {
    let (items, revision) = call.look(|state| {
        let own = state
            .tokens()
            .filter(|token| sees(&call.caller, token.user));
        own.map(|token| state.token_view(token)).collect()
    })?;
    Reply::json(&List::<Token> { items, revision }, revision)
}

pub(super) async fn token_create(call: Call) -> Result<Reply, ApiError> {
    let request: TokenCreate = call.body()?;
    let Caller::User { id: user, role, .. } = &call.caller else {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            "a token belongs to a user, and the console is none",
            "sign in, then make the token",
        ));
    };
    if request.role > *role {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("a token may do at most what its maker may: {role:?}"),
            "ask for a lower role",
        ));
    }
    if !(1..=TOKEN_DAYS_MAX).contains(&request.days) {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!("a token lasts 1 to {TOKEN_DAYS_MAX} days"),
            "choose another number of days",
        ));
    }
    let (secret, hash) = fresh_secret()?;
    let expires_at = after(Duration::from_secs(u64::from(request.days) * 86_400));
    let (id, object) = (TokenId::mint(), request.name.to_string());
    let TokenCreate { name, role, .. } = request;
    let command = Command::TokenCreate {
        token: id,
        kind: TokenKind::Api,
        name,
        user: *user,
        role,
        hash,
        expires_at,
    };
    let (revision, _) = call.propose(&object, command).await?;
    Reply::json(
        &TokenCreated {
            id,
            secret,
            expires_at,
        },
        revision,
    )
}

pub(super) async fn token_delete(call: Call) -> Result<Reply, ApiError> {
    let id: TokenId = call.id("token")?;
    let (owner, _) = call.look(|state| state.token(id).map(|token| token.user))?;
    // Another's token is as good as none: who may not see it does not learn that it is there.
    if !owner.is_some_and(|owner| sees(&call.caller, owner)) {
        return Err(not_found("token", id));
    }
    let (revision, _) = call
        .propose(&id.to_string(), Command::TokenRevoke { token: id })
        .await?;
    Ok(Reply::Empty {
        revision: Some(revision),
    })
}

pub(super) async fn user_list(call: Call) -> Result<Reply, ApiError> {
    let (items, revision) =
        call.look(|state| state.users().map(|u| state.user_view(u)).collect())?;
    Reply::json(&List::<User> { items, revision }, revision)
}

pub(super) async fn user_create(call: Call) -> Result<Reply, ApiError> {
    let request: UserCreate = call.body()?;
    let password_hash = call.context.auth.passwords.hash(request.password).await?;
    let object = request.name.to_string();
    let command = Command::UserCreate {
        user: UserId::mint(),
        name: request.name,
        role: request.role,
        password_hash,
    };
    let (revision, outcome) = call.propose(&object, command).await?;
    Reply::json(&user(&call, UserId(object_of(&outcome)?))?, revision)
}

pub(super) async fn user_delete(call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("user")?;
    let (found, _) = call.look(|state| state.user_ref(&reference).map(|user| user.id))?;
    let user = found.ok_or_else(|| not_found("user", &reference))?;
    let (revision, _) = call
        .propose(&reference.to_string(), Command::UserDelete { user })
        .await?;
    Ok(Reply::Empty {
        revision: Some(revision),
    })
}

pub(super) async fn audit_list(call: Call) -> Result<Reply, ApiError> {
    let limit = limit(&call)?;
    let (items, revision) =
        call.look(|state| state.audit().rev().take(limit).cloned().collect())?;
    Reply::json(&List::<AuditRecord> { items, revision }, revision)
}
