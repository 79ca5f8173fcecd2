//! Disk images that are not raw: looked into when they are uploaded.

use std::time::Duration;

use api::ErrorCode;
use api::client::Client;
use api::images::{ImageCreate, ImageFormat, ImageKind, ImagePhase};
use api::tasks::TaskPhase;
use hostd::fake::qcow2_image;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::journey::hex;
use super::lab::Lab;

const WITHIN: Duration = Duration::from_secs(10);

fn spec(name: &str, format: ImageFormat, bytes: &[u8]) -> ImageCreate {
    ImageCreate {
        name: name.parse().unwrap(),
        kind: ImageKind::Disk,
        format,
        size_bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(bytes)),
    }
}

async fn volume(admin: &Client, name: &str, image: &str, mib: u64) -> Result<(), api::ApiError> {
    let request =
        serde_json::from_value(json!({"name": name, "size": mib, "from_image": image})).unwrap();
    match admin.volume_create(&request).await {
        Ok(made) => {
            admin.task_wait(made.task, WITHIN).await.unwrap();
            Ok(())
        }
        Err(api::client::ClientError::Refused { error, .. }) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_qcow2_image_says_how_large_its_disk_is_and_volumes_are_made_from_it() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let bytes = qcow2_image((20 << 20) + 512, b"inside");
    let length = bytes.len() as u64;
    let create = admin
        .image_create(&spec("packed", ImageFormat::Qcow2, &bytes))
        .await
        .unwrap();
    assert_eq!(create.object.virtual_bytes, None);
    let image = admin
        .image_upload("packed", std::io::Cursor::new(bytes), length, None)
        .await
        .unwrap();
    assert_eq!(image.phase, ImagePhase::Ready);
    assert_eq!(image.format, ImageFormat::Qcow2);
    assert_eq!(image.virtual_bytes, Some((20 << 20) + 512));
    admin.task_wait(create.task, WITHIN).await.unwrap();

    let small = volume(&admin, "root", "packed", 20).await.unwrap_err();
    assert_eq!(small.code, ErrorCode::Invalid);
    assert!(small.hint.contains("at least 21 MiB"), "{small:?}");
    volume(&admin, "root", "packed", 21).await.unwrap();
}

#[tokio::test]
async fn an_image_that_cannot_be_used_fails_with_its_reason_and_nothing_of_it_stays() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let mut overlay = qcow2_image(1 << 20, b"");
    overlay[15] = 200;
    overlay[19] = 11;
    overlay[200..211].copy_from_slice(b"/etc/shadow");
    for (name, bytes, words) in [
        ("overlay", overlay, "backing file"),
        ("text", b"no image at all".to_vec(), "no qcow2 image"),
    ] {
        let length = bytes.len() as u64;
        let create = admin
            .image_create(&spec(name, ImageFormat::Qcow2, &bytes))
            .await
            .unwrap();
        let refused = admin
            .image_upload(name, std::io::Cursor::new(bytes), length, None)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::ImageUnusable));
        let image = admin.image_get(name).await.unwrap();
        assert_eq!(image.phase, ImagePhase::Failed);
        let condition = image.condition.unwrap();
        assert_eq!(condition.code, "image_unusable");
        assert!(condition.cause.contains(words), "{condition:?}");
        let task = admin.task_get(create.task, None).await.unwrap();
        let TaskPhase::Failed { error } = task.phase else {
            panic!("{task:?}");
        };
        assert_eq!(error.code, ErrorCode::ImageUnusable);
        let not_ready = volume(&admin, "root", name, 64).await.unwrap_err();
        assert_eq!(not_ready.code, ErrorCode::NotReady);
    }
    let files = std::fs::read_dir(lab.dir.path().join("data/images"));
    assert_eq!(files.unwrap().count(), 0);
}

/// A guest that has its raw disk look like an image of another format gains nothing.
#[tokio::test]
async fn what_was_said_to_be_raw_is_raw() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let bytes = qcow2_image(1 << 40, b"");
    let length = bytes.len() as u64;
    let mut request = serde_json::to_value(spec("disk", ImageFormat::Raw, &bytes)).unwrap();
    request.as_object_mut().unwrap().remove("format");
    admin
        .image_create(&serde_json::from_value(request).unwrap())
        .await
        .unwrap();
    let image = admin
        .image_upload("disk", std::io::Cursor::new(bytes), length, None)
        .await
        .unwrap();
    assert_eq!(
        (image.format, image.virtual_bytes),
        (ImageFormat::Raw, None)
    );
    volume(&admin, "root", "disk", 1).await.unwrap();
}

/// The power went between the last byte and the word that it had come.
#[tokio::test]
async fn an_upload_that_nobody_was_told_of_is_looked_into_again() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let good = qcow2_image(7 << 20, b"inside");
    let mut bad = good.clone();
    bad[35] = 1;
    let mut tasks = Vec::new();
    for (name, bytes) in [("good", good), ("bad", bad)] {
        let spec = spec(name, ImageFormat::Qcow2, &bytes);
        let create = admin.image_create(&spec).await.unwrap();
        let images = lab.dir.path().join("data/images");
        let unfinished = lab.dir.path().join(name);
        std::fs::write(&unfinished, bytes).unwrap();
        std::fs::rename(unfinished, images.join(create.object.id.to_string())).unwrap();
        tasks.push(create.task);
    }
    // Any change makes the host look at what it has.
    admin
        .image_create(&spec("another", ImageFormat::Raw, b"x"))
        .await
        .unwrap();
    admin.task_wait(tasks[0], WITHIN).await.unwrap();
    let image = admin.image_get("good").await.unwrap();
    assert_eq!(image.virtual_bytes, Some(7 << 20));
    admin.task_wait(tasks[1], WITHIN).await.unwrap_err();
    let image = admin.image_get("bad").await.unwrap();
    let condition = image.condition.unwrap();
    assert!(condition.cause.contains("encryption"), "{condition:?}");
}
