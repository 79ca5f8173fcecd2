//! What a write may not do, and what happens when it is sent twice.

use api::ErrorCode;
use api::client::ClientError;
use api::endpoints;
use api::images::{ImageCreate, ImageFormat, ImageKind, ImagePhase};
use api::vms::VmUpdate;
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::journey::{hex, image, vm_spec};
use super::lab::Lab;
use super::raw::Raw;

#[tokio::test]
async fn the_same_key_does_it_once_and_another_request_under_it_is_refused() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    image(&admin, "kernel", b"vmlinuz").await;
    let create = |key: &'static str| {
        admin.call_with_key(&endpoints::vm_create, &[], &[], vm_spec_ref(), Some(key))
    };
    let first = create("once").await.unwrap();
    let second = create("once").await.unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(admin.vm_list().await.unwrap().items.len(), 1);

    let fresh = create("another").await.unwrap_err();
    assert_eq!(fresh.code(), Some(ErrorCode::Exists));
    let other = admin
        .call_with_key(&endpoints::vm_start, &[&"web"], &[], &(), Some("once"))
        .await
        .unwrap_err();
    assert_eq!(other.code(), Some(ErrorCode::IdempotencyMismatch));

    let mut raw = Raw::with_token(&lab, lab.secret("admin").await);
    for bad in ["", " ", &"k".repeat(129), "a b"] {
        let answer = raw
            .send_with(
                "POST",
                "/api/v1/vms/web/start",
                &[("idempotency-key", bad)],
                None,
            )
            .await;
        answer.is_refusal(ErrorCode::BadRequest, bad);
    }
}

fn vm_spec_ref() -> &'static api::vms::VmCreate {
    static SPEC: std::sync::LazyLock<api::vms::VmCreate> = std::sync::LazyLock::new(vm_spec);
    &SPEC
}

#[tokio::test]
async fn a_late_update_is_refused() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    image(&admin, "kernel", b"vmlinuz").await;
    let vm = admin.vm_create(&vm_spec()).await.unwrap();
    let update = VmUpdate {
        revision: Some(vm.revision),
        vcpus: Some(2),
        ..VmUpdate::default()
    };
    let newer = admin.vm_update(vm.id, &update).await.unwrap();
    assert_eq!(newer.vcpus, 2);
    assert!(newer.revision > vm.revision);
    let late = admin.vm_update(vm.id, &update).await.unwrap_err();
    assert_eq!(late.code(), Some(ErrorCode::RevisionConflict));
}

#[tokio::test]
async fn other_bytes_than_promised_do_not_become_an_image() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let promised = b"the promised bytes";
    let spec = ImageCreate {
        name: "kernel".parse().unwrap(),
        kind: ImageKind::Kernel,
        format: ImageFormat::Raw,
        size_bytes: promised.len() as u64,
        sha256: hex(&Sha256::digest(promised)),
    };
    let created = admin.image_create(&spec).await.unwrap();
    let send = |bytes: &'static [u8]| admin.image_upload("kernel", bytes, bytes.len() as u64, None);
    for wrong in [
        b"the_promised_bytes".as_slice(),
        b"short",
        b"much too many promised bytes",
        b"",
    ] {
        let refused = send(wrong).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Some(ErrorCode::ChecksumMismatch),
            "{wrong:?}"
        );
        assert_eq!(
            admin.image_get("kernel").await.unwrap().phase,
            ImagePhase::Uploading
        );
    }
    // Chunked, so that only the count of the bytes tells.
    let mut raw = Raw::with_token(&lab, lab.secret("admin").await);
    let path = "/api/v1/images/kernel/content";
    let answer = raw
        .send_with("PUT", path, &[], Some(Bytes::from(vec![7; 1 << 20])))
        .await;
    answer.is_refusal(ErrorCode::ChecksumMismatch, "a megabyte");

    assert_eq!(send(promised).await.unwrap().phase, ImagePhase::Ready);
    admin
        .task_wait(created.task, std::time::Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        send(promised).await.unwrap_err().code(),
        Some(ErrorCode::WrongPhase)
    );
    let files = std::fs::read_dir(lab.dir.path().join("data/images"))
        .unwrap()
        .count();
    assert_eq!(files, 1);
    let nowhere = admin
        .image_upload("nothing", b"x".as_slice(), 1, None)
        .await
        .unwrap_err();
    assert_eq!(nowhere.code(), Some(ErrorCode::NotFound));
}

#[tokio::test]
async fn a_broken_upload_may_be_sent_again() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let promised = vec![9; 300_000];
    let spec = ImageCreate {
        name: "disk".parse().unwrap(),
        kind: ImageKind::Disk,
        format: ImageFormat::Raw,
        size_bytes: promised.len() as u64,
        sha256: hex(&Sha256::digest(&promised)),
    };
    admin.image_create(&spec).await.unwrap();
    // The source ends early: the connection is cut with half of the body sent.
    let half = std::io::Cursor::new(promised[..150_000].to_vec());
    let broken = admin
        .image_upload("disk", half, promised.len() as u64, None)
        .await
        .unwrap_err();
    assert!(
        matches!(broken, ClientError::Broken(_) | ClientError::Refused { .. }),
        "{broken:?}"
    );
    for attempt in 0.. {
        match admin
            .image_upload(
                "disk",
                std::io::Cursor::new(promised.clone()),
                promised.len() as u64,
                None,
            )
            .await
        {
            Ok(image) => {
                assert_eq!(image.phase, ImagePhase::Ready);
                break;
            }
            // The server may not have noticed yet that the first one is gone.
            Err(error) if error.code() == Some(ErrorCode::InUse) && attempt < 100 => {
                tokio::task::yield_now().await
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn values_out_of_range_are_refused_with_a_reason() {
    let lab = Lab::new().await;
    lab.admin().await;
    let mut admin = Raw::with_token(&lab, lab.secret("admin").await);
    for (path, body, code) in [
        (
            "/api/v1/tokens",
            json!({"name": "t", "role": "viewer", "days": 0}),
            ErrorCode::Invalid,
        ),
        (
            "/api/v1/tokens",
            json!({"name": "t", "role": "viewer", "days": 4000}),
            ErrorCode::Invalid,
        ),
        (
            "/api/v1/tokens",
            json!({"name": "t", "role": "king", "days": 1}),
            ErrorCode::BadRequest,
        ),
        (
            "/api/v1/users",
            json!({"name": "eve", "role": "viewer", "password": "short"}),
            ErrorCode::Invalid,
        ),
        (
            "/api/v1/users",
            json!({"name": "../eve", "role": "viewer", "password": "long enough"}),
            ErrorCode::BadRequest,
        ),
        (
            "/api/v1/volumes",
            json!({"name": "v", "size": 0}),
            ErrorCode::Invalid,
        ),
        (
            "/api/v1/volumes",
            json!({"name": "v", "size": -1}),
            ErrorCode::BadRequest,
        ),
        (
            "/api/v1/volumes",
            json!({"name": "v", "size": 1, "from_image": "none"}),
            ErrorCode::NotFound,
        ),
    ] {
        admin
            .send("POST", path, Some(&body.to_string()))
            .await
            .is_refusal(code, &format!("{path} {body}"));
    }
    for query in ["limit=0", "limit=1001", "limit=x"] {
        let answer = admin
            .send("GET", &format!("/api/v1/tasks?{query}"), None)
            .await;
        assert!(answer.status.is_client_error(), "{query}");
    }
}
