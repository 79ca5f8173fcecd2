//! The first administrator, passwords, tokens, and who is told what.

use std::time::Duration;

use api::ErrorCode;
use api::users::{Role, Secret, SessionCreate, SetupRequest, TokenCreate, TokenKind};
use api::vms::VmUpdate;

use super::lab::{Lab, PASSWORD, Wish, is_root};

fn setup(token: &str) -> SetupRequest {
    SetupRequest {
        token: Secret(token.to_owned()),
        name: "admin".parse().unwrap(),
        password: Secret(PASSWORD.to_owned()),
    }
}

fn session(name: &str, password: &str) -> SessionCreate {
    SessionCreate {
        name: name.parse().unwrap(),
        password: Secret(password.to_owned()),
    }
}

#[tokio::test]
async fn the_setup_token_works_once() {
    let lab = Lab::new().await;
    let stranger = lab.stranger();
    assert!(!stranger.setup_get().await.unwrap().done);
    assert_eq!(stranger.setup_get().await.unwrap().token, None);
    let wrong = stranger
        .setup_create(&setup("aaaa-bbbb-cccc-dddd"))
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), Some(ErrorCode::Unauthenticated));

    let token = lab.setup_token();
    stranger.setup_create(&setup(&token.0)).await.unwrap();
    assert!(stranger.setup_get().await.unwrap().done);
    assert!(!lab.dir.path().join("setup-token").exists());
    let again = stranger.setup_create(&setup(&token.0)).await.unwrap_err();
    assert_eq!(again.code(), Some(ErrorCode::SetupDone));
    let admin = lab.sign_in("admin").await;
    let audit = admin.audit_list(None).await.unwrap();
    let seen: Vec<_> = audit
        .items
        .iter()
        .map(|r| (r.action.as_str(), r.outcome.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("session_create", "ok"),
            ("setup_create", "ok"),
            ("setup_create", "unauthenticated")
        ]
    );
}

#[tokio::test]
async fn the_console_sees_the_token_and_needs_none() {
    let lab = Lab::new().await;
    if !is_root() {
        return;
    }
    let console = lab.console();
    assert_eq!(
        console.setup_get().await.unwrap().token,
        Some(lab.setup_token().0)
    );
    console.setup_create(&setup("")).await.unwrap();
    assert_eq!(console.setup_get().await.unwrap().token, None);
    // Administrator, but nobody's token: it has none to revoke and can make none.
    assert!(console.user_list().await.is_ok());
    assert_eq!(
        console.session_delete().await.unwrap_err().code(),
        Some(ErrorCode::NotFound)
    );
    let audit = console.audit_list(None).await.unwrap();
    assert_eq!(
        (audit.items[0].who.as_str(), audit.items[0].from.as_str()),
        ("console", "console")
    );
    // With somebody's wrong token it is nobody.
    let forged = lab.console().with_token(Secret("lqx_x".to_owned()));
    assert_eq!(
        forged.vm_list().await.unwrap_err().code(),
        Some(ErrorCode::Unauthenticated)
    );
}

#[tokio::test]
async fn guessing_a_password_stops_early() {
    let lab = Lab::wish(Wish {
        attempts_max: 3,
        ..Wish::default()
    })
    .await;
    let admin = lab.admin().await;
    let stranger = lab.stranger();
    for _ in 0..3 {
        let wrong = stranger
            .session_create(&session("admin", "wrong password"))
            .await
            .unwrap_err();
        assert_eq!(wrong.code(), Some(ErrorCode::Unauthenticated));
    }
    // Now even the right one has to wait; who has signed in goes on.
    for password in ["wrong password", PASSWORD] {
        let limited = stranger
            .session_create(&session("admin", password))
            .await
            .unwrap_err();
        assert_eq!(limited.code(), Some(ErrorCode::RateLimited));
    }
    let audit = admin.audit_list(None).await.unwrap();
    let failed: Vec<_> = audit
        .items
        .iter()
        .filter(|r| r.outcome == "unauthenticated")
        .collect();
    assert_eq!(failed.len(), 3);
    assert!(
        failed
            .iter()
            .all(|r| r.action == "session_create" && r.object == "admin" && r.from == "127.0.0.1")
    );
}

#[tokio::test]
async fn nobody_learns_whether_a_name_exists() {
    let lab = Lab::new().await;
    lab.admin().await;
    let stranger = lab.stranger();
    let known = stranger
        .session_create(&session("admin", "wrong password"))
        .await
        .unwrap_err()
        .to_string();
    let unknown = stranger
        .session_create(&session("nobody", "wrong password"))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(known, unknown);
}

#[tokio::test]
async fn guessing_the_setup_token_stops_early() {
    let lab = Lab::wish(Wish {
        attempts_max: 3,
        ..Wish::default()
    })
    .await;
    let stranger = lab.stranger();
    for _ in 0..3 {
        stranger
            .setup_create(&setup("aaaa-bbbb-cccc-dddd"))
            .await
            .unwrap_err();
    }
    let limited = stranger
        .setup_create(&setup(&lab.setup_token().0))
        .await
        .unwrap_err();
    assert_eq!(limited.code(), Some(ErrorCode::RateLimited));
}

#[tokio::test]
async fn signing_out_ends_a_token() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    admin.session_delete().await.unwrap();
    assert_eq!(
        admin.vm_list().await.unwrap_err().code(),
        Some(ErrorCode::Unauthenticated)
    );
}

#[tokio::test]
async fn a_token_may_no_more_than_its_maker_and_only_its_owner_sees_it() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let viewer = lab.user(&admin, "viewer", Role::Viewer).await;
    let request = |role| TokenCreate {
        name: "backup".parse().unwrap(),
        role,
        days: 1,
    };
    let refused = viewer
        .token_create(&request(Role::Operator))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Forbidden));

    let made = admin.token_create(&request(Role::Viewer)).await.unwrap();
    let program = lab.stranger().with_token(made.secret.clone());
    program.vm_list().await.unwrap();
    let refused = program
        .vm_update("web", &VmUpdate::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Forbidden));

    let seen = viewer.token_list().await.unwrap().items;
    assert!(
        seen.len() == 1 && seen[0].kind == TokenKind::Session,
        "{seen:?}"
    );
    assert_eq!(
        viewer.token_delete(made.id).await.unwrap_err().code(),
        Some(ErrorCode::NotFound)
    );
    assert_eq!(admin.token_list().await.unwrap().items.len(), 3);
    admin.token_delete(made.id).await.unwrap();
    assert_eq!(
        program.vm_list().await.unwrap_err().code(),
        Some(ErrorCode::Unauthenticated)
    );

    // A user's end is the end of their tokens; the last administrator stays.
    admin.user_delete("viewer").await.unwrap();
    assert_eq!(
        viewer.vm_list().await.unwrap_err().code(),
        Some(ErrorCode::Unauthenticated)
    );
    assert!(admin.user_delete("admin").await.is_err());
}

#[tokio::test]
async fn no_secret_is_in_a_list_or_an_error() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let made = admin
        .token_create(&TokenCreate {
            name: "backup".parse().unwrap(),
            role: Role::Viewer,
            days: 1,
        })
        .await
        .unwrap();
    let text = format!(
        "{:?}{:?}{:?}{}",
        admin.token_list().await.unwrap(),
        admin.user_list().await.unwrap(),
        admin.audit_list(Some(1000)).await.unwrap(),
        admin.metrics_get().await.unwrap(),
    );
    for secret in [made.secret.0.as_str(), PASSWORD, "argon2id"] {
        assert!(!text.contains(secret), "{secret}");
    }
    let slow = admin
        .task_get(api::ids::TaskId::mint(), Some(Duration::from_secs(30)))
        .await
        .unwrap_err();
    assert_eq!(slow.code(), Some(ErrorCode::NotFound));
}
