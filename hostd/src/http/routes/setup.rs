//! The first administrator, and signing in and out.

use std::time::Duration;

use api::ids::{TokenId, UserId};
use api::units::Millis;
use api::users::{SessionCreate, SetupRequest, SetupStatus, TokenCreated, TokenKind, User};
use api::{ApiError, ErrorCode};
use hostd_state::Command;

use crate::auth::{Caller, token};
use crate::http::call::{Call, Reply, gone_meanwhile, object_of};
use crate::http::error::internal;

/// What throttles guesses of the setup token: it has no name of its own, and names have no space.
const SETUP: &str = "setup token";

pub(super) async fn setup_get(call: Call) -> Result<Reply, ApiError> {
    let done = call.context.setup_done();
    let shown = call.caller == Caller::Console && !done && call.context.cluster.is_some();
    let token = if shown {
        call.context.auth.setup_token.show()
    } else {
        None
    };
    Reply::json(&SetupStatus { done, token }, None)
}

pub(super) async fn setup_create(call: Call) -> Result<Reply, ApiError> {
    let request: SetupRequest = call.body()?;
    let auth = &call.context.auth;
    if call.context.setup_done() {
        return Err(ApiError::new(
            ErrorCode::SetupDone,
            "an administrator exists already",
            "sign in instead",
        ));
    }
    if call.caller != Caller::Console {
        let from = call.from.address();
        auth.throttle.attempt(from, SETUP)?;
        if !auth.setup_token.matches(&request.token) {
            call.note(request.name.as_str(), "unauthenticated").await?;
            return Err(ApiError::new(
                ErrorCode::Unauthenticated,
                "this is not the setup token",
                "the machine's console shows it",
            ));
        }
        auth.throttle.succeeded(from, SETUP);
    }
    let password_hash = auth.passwords.hash(request.password).await?;
    let name = request.name.to_string();
    let command = Command::Setup {
        user: UserId::mint(),
        name: request.name,
        password_hash,
    };
    let (revision, outcome) = call.propose(&name, command).await?;
    auth.setup_token.spend();
    Reply::json(&user(&call, UserId(object_of(&outcome)?))?, revision)
}

pub(super) async fn session_create(call: Call) -> Result<Reply, ApiError> {
    let request: SessionCreate = call.body()?;
    let auth = &call.context.auth;
    let (from, name) = (call.from.address(), request.name.to_string());
    auth.throttle.attempt(from, &name)?;
    let (found, _) = call.look(|state| {
        let user = state.user_named(&request.name);
        user.map(|user| (user.id, user.role, user.password_hash.clone()))
    })?;
    let phc = found.as_ref().map(|(_, _, phc)| phc.clone());
    let right = auth.passwords.matches(request.password, phc).await?;
    let Some((user, role, _)) = found.filter(|_| right) else {
        call.note(&name, "unauthenticated").await?;
        return Err(ApiError::new(
            ErrorCode::Unauthenticated,
            "name or password is wrong",
            "check both, then try again",
        ));
    };
    auth.throttle.succeeded(from, &name);
    let (secret, hash) = fresh_secret()?;
    let expires_at = after(auth.session_lasts);
    let id = TokenId::mint();
    let command = Command::TokenCreate {
        token: id,
        kind: TokenKind::Session,
        name: request.name,
        user,
        role,
        hash,
        expires_at,
    };
    let (revision, _) = call.propose(&name, command).await?;
    Reply::json(
        &TokenCreated {
            id,
            secret,
            expires_at,
        },
        revision,
    )
}

pub(super) async fn session_delete(call: Call) -> Result<Reply, ApiError> {
    let Caller::User { token, .. } = &call.caller else {
        return Err(ApiError::new(
            ErrorCode::NotFound,
            "this caller came without a token",
            "only who has signed in can sign out",
        ));
    };
    let (revision, _) = call
        .propose("current", Command::TokenRevoke { token: *token })
        .await?;
    Ok(Reply::Empty {
        revision: Some(revision),
    })
}

/// A fresh token's secret and its hash.
pub(super) fn fresh_secret() -> Result<(api::users::Secret, api::users::Secret), ApiError> {
    let secret = token::mint().map_err(|e| internal("no random numbers", &e))?;
    let hash = token::hash(&secret);
    Ok((secret, hash))
}

pub(super) fn after(time: Duration) -> Millis {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Millis(Millis::now().0.saturating_add(ms))
}

pub(super) fn user(call: &Call, id: UserId) -> Result<User, ApiError> {
    let (found, _) = call.look(|state| state.user(id).map(|user| state.user_view(user)))?;
    found.ok_or_else(|| gone_meanwhile("user"))
}
