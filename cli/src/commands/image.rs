//! `lqx image`.

use std::path::{Path, PathBuf};

use api::client::Client;
use api::images::{ImageCreate, ImageFormat, ImageKind};
use api::names::Name;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::finish;
use crate::failure::Failure;
use crate::options::{DiskFormat, Image};
use crate::output::{Output, word};
use crate::size;
use crate::waiting::bytes_bar;

pub(super) async fn run(client: &Client, command: Image, output: Output) -> Result<(), Failure> {
    match command {
        Image::Ls => {
            let images = client.image_list().await?.items;
            output.list(
                &images,
                &["name", "kind", "format", "phase", "size", "sha256", "why"],
                |image| {
                    let why = image
                        .condition
                        .as_ref()
                        .map(|condition| condition.cause.clone());
                    vec![
                        image.name.to_string(),
                        word(&image.kind),
                        word(&image.format),
                        word(&image.phase),
                        size::bytes(image.size_bytes),
                        image.sha256.chars().take(12).collect(),
                        why.unwrap_or_default(),
                    ]
                },
            )
        }
        Image::Upload {
            file,
            kind,
            format,
            name,
        } => upload(client, file, kind.into(), format, name, output).await,
        Image::Rm { image, wait } => {
            let removal = client.image_delete(&image).await?;
            finish(client, removal.task, &wait, &format!("removing {image}")).await?;
            output.object(&removal, format!("image {image} removed"))
        }
    }
}

async fn upload(
    client: &Client,
    file: PathBuf,
    kind: ImageKind,
    format: Option<DiskFormat>,
    name: Option<Name>,
    output: Output,
) -> Result<(), Failure> {
    let name = match name {
        Some(name) => name,
        None => name_of(&file)?,
    };
    let cannot_read = || format!("could not read {}", file.display());
    let mut source = tokio::fs::File::open(&file)
        .await
        .map_err(Failure::here(cannot_read()))?;
    let size_bytes = source
        .metadata()
        .await
        .map_err(Failure::here(cannot_read()))?
        .len();

    let mut first = true;
    let bar = bytes_bar(size_bytes, &format!("checksum of {name}"));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = source
            .read(&mut buffer)
            .await
            .map_err(Failure::here(cannot_read()))?;
        if length == 0 {
            break;
        }
        if std::mem::take(&mut first) {
            format_was_said(kind, format, &buffer[..length])?;
        }
        hash.update(&buffer[..length]);
        bar.inc(length as u64);
    }
    bar.finish_and_clear();
    let sha256: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let format = format.map_or(ImageFormat::Raw, ImageFormat::from);
    let accepted = client
        .image_create(&ImageCreate {
            name: name.clone(),
            kind,
            format,
            size_bytes,
            sha256,
        })
        .await?;
    let source = tokio::fs::File::open(&file)
        .await
        .map_err(Failure::here(cannot_read()))?;
    let bar = bytes_bar(size_bytes, &format!("uploading {name}"));
    let progress = bar.clone();
    let sent = client
        .image_upload(
            accepted.object.id,
            source,
            size_bytes,
            Some(Box::new(move |sent| progress.set_position(sent))),
        )
        .await;
    bar.finish_and_clear();
    let image = sent?;
    output.object(
        &image,
        format!(
            "image {name} uploaded ({}, {})",
            size::bytes(size_bytes),
            word(&image.phase)
        ),
    )
}

/// A disk that begins as qcow2 images do: which of the two it is meant to be has to be said.
fn format_was_said(
    kind: ImageKind,
    format: Option<DiskFormat>,
    start: &[u8],
) -> Result<(), Failure> {
    if kind == ImageKind::Disk && format.is_none() && start.starts_with(b"QFI\xfb") {
        return Err(Failure::Usage(
            "this looks like a qcow2 image; say --format qcow2, or --format raw if its bytes are the disk itself"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The file's name as an image's name, if it is one.
fn name_of(file: &Path) -> Result<Name, Failure> {
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    name.parse()
        .map_err(|error| Failure::Usage(format!("`{name}`: {error}; say --name")))
}
