//! Role × action: the only "may". What is not allowed here is denied.

use api::endpoints::{Access, Info};
use api::{ApiError, ErrorCode};

use super::Caller;

/// Whether `caller` may ask for `endpoint` at all. What depends on the object (one's own token) is judged with it.
pub fn may(caller: &Caller, endpoint: &Info) -> Result<(), ApiError> {
    let least = match endpoint.access {
        Access::Public => return Ok(()),
        Access::Role(least) => least,
    };
    match caller.role() {
        None => Err(ApiError::new(
            ErrorCode::Unauthenticated,
            "this needs a valid token",
            "sign in with POST /api/v1/sessions, or send `Authorization: Bearer …`",
        )),
        Some(role) if role < least => Err(ApiError::new(
            ErrorCode::Forbidden,
            format!(
                "`{}` needs the role {least:?}; this is {role:?}",
                endpoint.name
            ),
            "ask an administrator",
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::ids::{TokenId, UserId};
    use api::users::Role;

    fn user(role: Role) -> Caller {
        Caller::User {
            id: UserId::mint(),
            name: "ann".parse().unwrap(),
            role,
            token: TokenId::mint(),
        }
    }

    #[test]
    fn each_role_may_what_its_row_says_and_nothing_more() {
        for endpoint in api::endpoints::all() {
            let callers = [
                Caller::Nobody,
                user(Role::Viewer),
                user(Role::Operator),
                user(Role::Admin),
            ];
            let allowed = callers.map(|caller| may(&caller, endpoint).is_ok());
            let expected = match endpoint.access {
                Access::Public => [true; 4],
                Access::Role(Role::Viewer) => [false, true, true, true],
                Access::Role(Role::Operator) => [false, false, true, true],
                Access::Role(Role::Admin) => [false, false, false, true],
            };
            assert_eq!(allowed, expected, "{}", endpoint.name);
            assert!(may(&Caller::Console, endpoint).is_ok(), "{}", endpoint.name);
        }
    }

    #[test]
    fn viewers_only_look() {
        let own = ["session_delete", "token_create", "token_delete"];
        for endpoint in api::endpoints::all() {
            if endpoint.writes()
                && endpoint.access != Access::Public
                && !own.contains(&endpoint.name)
            {
                assert!(
                    may(&user(Role::Viewer), endpoint).is_err(),
                    "{}",
                    endpoint.name
                );
            }
        }
    }
}
