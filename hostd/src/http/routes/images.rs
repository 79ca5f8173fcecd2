//! Images: the record first, then the bytes.

use std::io;

use api::ids::{ImageId, TaskId};
use api::images::{ImageCreate, ImagePhase};
use api::units::{Millis, Percent};
use api::{ApiError, ErrorCode};
use axum::http::header;
use futures_util::StreamExt;
use hostd_state::{Command, Meta, Report};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

use crate::cluster::Cluster;
use crate::http::call::{Call, Reply};
use crate::http::error::{bad_request, internal, not_found};
use crate::http::hands::{NotReceived, Promise, Upload};

/// An upload that stands still for so long is given up.
const CHUNK_WITHIN: Duration = Duration::from_secs(60);
/// How often an upload's progress is agreed on, at most.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn image_list(call: Call) -> Result<Reply, ApiError> {
    call.list(|state| state.images().map(|i| state.image_view(i)).collect())
}

pub(super) async fn image_get(call: Call) -> Result<Reply, ApiError> {
    call.show("image", |state, reference| {
        state.image_ref(reference).map(|i| state.image_view(i))
    })
}

pub(super) async fn image_create(call: Call) -> Result<Reply, ApiError> {
    let spec: ImageCreate = call.body()?;
    let name = spec.name.to_string();
    let command = Command::ImageCreate {
        image: ImageId::mint(),
        task: TaskId::mint(),
        host: call.context.host()?,
        spec,
    };
    call.accept("image", &name, command, |state, id| {
        state.image(ImageId(id)).map(|i| state.image_view(i))
    })
    .await
}

pub(super) async fn image_delete(call: Call) -> Result<Reply, ApiError> {
    call.remove(
        "image",
        |state, reference| state.image_ref(reference).map(|i| i.id.0),
        |id, task| Command::ImageDelete {
            image: ImageId(id),
            task,
        },
    )
    .await
}

pub(super) async fn image_upload(mut call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("image")?;
    let (found, _) = call.look(|state| state.image_ref(&reference).map(|i| state.image_view(i)))?;
    let image = found.ok_or_else(|| not_found("image", &reference))?;
    if image.phase != ImagePhase::Uploading {
        return Err(ApiError::new(
            ErrorCode::WrongPhase,
            format!("image `{}` is not waiting for its bytes", image.name),
            "create another image for other bytes",
        ));
    }
    right_length(&call, image.size_bytes)?;
    let promise = Promise {
        size_bytes: image.size_bytes,
        sha256: image.sha256.clone(),
        format: image.format,
    };
    let (told, progress) = watch::channel(0_u64);
    let bytes = counted(&mut call, told, image.size_bytes)?;
    let reporter = tokio::spawn(report_progress(
        call.context.cluster()?.clone(),
        image.id,
        image.size_bytes,
        progress,
    ));
    let received = call.context.images.receive(image.id, promise, bytes).await;
    reporter.abort();
    let observed = |report, virtual_bytes| Command::ImageObserved {
        image: image.id,
        report,
        virtual_bytes,
    };
    let virtual_bytes = match received {
        Ok(virtual_bytes) => virtual_bytes,
        Err(NotReceived::Refused(error)) => {
            // The record goes on waiting: the same bytes may be sent again.
            let code = hostd_state::refused::code_name(error.code);
            call.note(image.name.as_str(), &code).await?;
            return Err(error);
        }
        Err(NotReceived::Unusable(fault)) => {
            let error = ApiError::new(
                ErrorCode::ImageUnusable,
                fault.cause.clone(),
                fault.next.clone(),
            );
            let failed = observed(Report::Failed(fault), None);
            call.propose(image.name.as_str(), failed).await?;
            return Err(error);
        }
    };
    let ready = observed(Report::Ready, virtual_bytes);
    let (revision, _) = call.propose(image.name.as_str(), ready).await?;
    let now = call.now("image", |state| {
        state.image(image.id).map(|i| state.image_view(i))
    })?;
    Reply::json(&now, revision)
}

/// A wrong length is told before a gigabyte has been sent.
fn right_length(call: &Call, promised: u64) -> Result<(), ApiError> {
    let Some(value) = call.headers.get(header::CONTENT_LENGTH) else {
        return Ok(());
    };
    let length: Option<u64> = value.to_str().ok().and_then(|text| text.parse().ok());
    match length {
        Some(length) if length == promised => Ok(()),
        Some(length) => Err(ApiError::new(
            ErrorCode::ChecksumMismatch,
            format!("the image has {promised} bytes, this upload {length}"),
            "send the file that the image was created for",
        )),
        None => Err(bad_request("Content-Length is no number")),
    }
}

/// The upload's bytes, counted into `told`; longer than promised or standing still is an error.
fn counted(call: &mut Call, told: watch::Sender<u64>, promised: u64) -> Result<Upload, ApiError> {
    let body = call
        .stream
        .get_mut()
        .ok()
        .and_then(Option::take)
        .ok_or_else(|| internal("the upload has no body", &"no stream"))?;
    let chunks = Box::pin(body.into_data_stream());
    let stream =
        futures_util::stream::unfold(Some((chunks, told, 0_u64)), move |live| async move {
            let (mut chunks, told, mut got) = live?;
            match timeout(CHUNK_WITHIN, chunks.next()).await {
                Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
                Ok(None) => None,
                Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
                Ok(Some(Ok(chunk))) => {
                    got += chunk.len() as u64;
                    // One chunk over is passed on, so that the store refuses it as a wrong length; no more.
                    told.send_replace(got);
                    let rest = (got <= promised).then_some((chunks, told, got));
                    Some((Ok(chunk), rest))
                }
            }
        });
    Ok(Box::pin(stream))
}

async fn report_progress(
    cluster: Cluster,
    image: ImageId,
    promised: u64,
    mut got: watch::Receiver<u64>,
) {
    let mut last = 0;
    while got.changed().await.is_ok() {
        let percent =
            u8::try_from((*got.borrow_and_update()).saturating_mul(100) / promised.max(1))
                .unwrap_or(99)
                .min(99);
        if percent > last {
            last = percent;
            let command = Command::ImageObserved {
                image,
                report: Report::Progress(Percent(percent)),
                virtual_bytes: None,
            };
            if let Err(error) = cluster.propose(Meta::host(Millis::now()), command).await {
                tracing::debug!(%image, %error, "an upload's progress was not agreed on");
            }
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    }
}
