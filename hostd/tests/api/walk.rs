//! All endpoints, one after the other: none answers without its policy, its document or its refusals.

use api::ErrorCode;
use api::endpoints::{self, Access, BodyKind, JSON_LEN_MAX, Modes};
use api::system::Mode;
use api::users::Role;
use bytes::Bytes;
use serde_json::{Value, json};

use super::lab::{Lab, Wish, good_bodies};
use super::raw::{Raw, path_of};

fn rows(modes: &[Modes]) -> Vec<&'static endpoints::Info> {
    endpoints::all()
        .into_iter()
        .filter(|row| modes.contains(&row.modes))
        .collect()
}

fn body_of(name: &str) -> Option<String> {
    good_bodies().get(name).map(Value::to_string)
}

#[test]
fn each_json_endpoint_has_a_good_body_here() {
    let names: Vec<_> = endpoints::all()
        .into_iter()
        .filter(|row| row.request == BodyKind::Json)
        .map(|row| row.name)
        .collect();
    let mut bodies: Vec<_> = good_bodies().into_keys().collect();
    bodies.sort_by_key(|name| names.iter().position(|known| known == name));
    assert_eq!(bodies, names);
}

#[tokio::test]
async fn nobody_gets_in_without_a_token() {
    let lab = Lab::new().await;
    let forged = format!("lqx_{}", "A".repeat(43));
    let mut stranger = Raw::stranger(&lab);
    for row in rows(&[Modes::Any, Modes::Run]) {
        if row.access != Access::Public {
            let answer = stranger
                .send(
                    row.method.as_str(),
                    &path_of(row),
                    body_of(row.name).as_deref(),
                )
                .await;
            answer.is_refusal(ErrorCode::SetupRequired, row.name);
        }
    }
    lab.admin().await;
    let mut forger = Raw::with_token(&lab, forged);
    for row in rows(&[Modes::Any, Modes::Run]) {
        if row.access != Access::Public {
            for caller in [&mut stranger, &mut forger] {
                let answer = caller
                    .send(
                        row.method.as_str(),
                        &path_of(row),
                        body_of(row.name).as_deref(),
                    )
                    .await;
                answer.is_refusal(ErrorCode::Unauthenticated, row.name);
                assert_eq!(answer.headers["www-authenticate"], "Bearer", "{}", row.name);
            }
        }
    }
}

#[tokio::test]
async fn a_role_gets_no_further_than_its_row() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    lab.user(&admin, "viewer", Role::Viewer).await;
    lab.user(&admin, "operator", Role::Operator).await;
    for (name, role) in [("viewer", Role::Viewer), ("operator", Role::Operator)] {
        let mut caller = Raw::with_token(&lab, lab.secret(name).await);
        for row in rows(&[Modes::Any, Modes::Run]) {
            let Access::Role(least) = row.access else {
                continue;
            };
            if least > role {
                let answer = caller
                    .send(
                        row.method.as_str(),
                        &path_of(row),
                        body_of(row.name).as_deref(),
                    )
                    .await;
                answer.is_refusal(ErrorCode::Forbidden, row.name);
            }
        }
    }
    // What was refused was recorded, and nothing was done.
    let audit = admin.audit_list(Some(1000)).await.unwrap();
    let forbidden = audit
        .items
        .iter()
        .filter(|record| record.outcome == "forbidden")
        .count();
    assert!(forbidden > 10, "{forbidden}");
    assert!(lab.system.powered.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_understood_is_refused() {
    let lab = Lab::new().await;
    lab.admin().await;
    let mut admin = Raw::with_token(&lab, lab.secret("admin").await);
    for row in rows(&[Modes::Any, Modes::Run]) {
        let (method, path) = (row.method.as_str(), path_of(row));
        let good = body_of(row.name);

        let query = format!("{path}?nonsense=1");
        admin
            .send(method, &query, good.as_deref())
            .await
            .is_refusal(ErrorCode::BadRequest, row.name);

        let taken: Vec<_> = endpoints::all()
            .into_iter()
            .filter(|other| other.path == row.path)
            .map(|other| other.method.as_str())
            .collect();
        let wrong = ["DELETE", "PUT", "PATCH", "POST", "TRACE"]
            .into_iter()
            .find(|m| !taken.contains(m))
            .unwrap();
        let answer = admin.send(wrong, &path, None).await;
        answer.is_refusal(ErrorCode::MethodNotAllowed, row.name);
        assert!(answer.headers.contains_key("allow"), "{}", row.name);

        match (row.request, good) {
            (BodyKind::Json, Some(good)) => {
                let mut unknown: Value = serde_json::from_str(&good).unwrap();
                unknown["nonsense"] = json!(1);
                let large = format!("{good}{}", " ".repeat(JSON_LEN_MAX));
                for (body, code) in [
                    (unknown.to_string(), ErrorCode::BadRequest),
                    (good[..good.len() - 1].to_owned(), ErrorCode::BadRequest),
                    ("[]".to_owned(), ErrorCode::BadRequest),
                    (String::new(), ErrorCode::BadRequest),
                    (large, ErrorCode::TooLarge),
                ] {
                    admin
                        .send(method, &path, Some(&body))
                        .await
                        .is_refusal(code, row.name);
                }
                let as_text = [("content-type", "text/plain")];
                let answer = admin
                    .send_with(method, &path, &as_text, Some(Bytes::from(good)))
                    .await;
                answer.is_refusal(ErrorCode::BadRequest, row.name);
            }
            (BodyKind::None, _) => {
                admin
                    .send(method, &path, Some("{}"))
                    .await
                    .is_refusal(ErrorCode::TooLarge, row.name);
            }
            _ => {}
        }
        if row.path_params().next().is_some() && row.reply != BodyKind::WebSocket {
            let nonsense = path.replace("01900000-0000-7000-8000-000000000001", "No%20Name");
            admin
                .send(method, &nonsense, body_of(row.name).as_deref())
                .await
                .is_refusal(ErrorCode::BadRequest, row.name);
            admin
                .send(method, &path, body_of(row.name).as_deref())
                .await
                .is_refusal(ErrorCode::NotFound, row.name);
        }
    }
    admin
        .send("GET", "/api/v1/nothing", None)
        .await
        .is_refusal(ErrorCode::NotFound, "no such path");
    admin
        .send("GET", "/", None)
        .await
        .is_refusal(ErrorCode::NotFound, "the root");
}

#[tokio::test]
async fn every_endpoint_is_in_the_document_that_it_serves() {
    let lab = Lab::new().await;
    let answer = Raw::stranger(&lab)
        .send("GET", "/api/v1/openapi.json", None)
        .await;
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    for row in endpoints::all() {
        let method = row.method.as_str().to_lowercase();
        let operation = &document["paths"][row.full_path()][&method];
        assert_eq!(operation["operationId"], row.name);
        assert_eq!(operation["summary"].as_str().unwrap(), row.doc.trim());
    }
}

#[tokio::test]
async fn a_machine_that_installs_answers_only_about_that() {
    let lab = Lab::wish(Wish {
        mode: Mode::Install,
        ..Wish::default()
    })
    .await;
    let mut stranger = Raw::stranger(&lab);
    for row in endpoints::all() {
        let answer = stranger
            .send(
                row.method.as_str(),
                &path_of(row),
                body_of(row.name).as_deref(),
            )
            .await;
        match (row.modes, row.access) {
            (Modes::Run, _) => answer.is_refusal(ErrorCode::NotInstalled, row.name),
            // Erasing a disk takes more than reaching the machine over the network.
            (_, Access::Role(_)) => answer.is_refusal(ErrorCode::Unauthenticated, row.name),
            (_, Access::Public) => assert_eq!(answer.status, 200, "{}", row.name),
        }
    }
    if super::lab::is_root() {
        let status = lab.console().install_get().await.unwrap();
        assert_eq!(status.phase, api::install::InstallPhase::Waiting);
        let request = serde_json::from_value(json!({"disk": "vdz"})).unwrap();
        let refused = lab.console().install_start(&request).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::NotFound));
    }
}
