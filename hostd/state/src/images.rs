//! An image's life.
//!
//! ```text
//! create ─► Uploading ──ready──► Ready ──┐
//!               │                  │     │
//!               └──failed──► Failed◄┘    │     any of them ──delete──► Deleting ──removed──► gone
//! ```

use api::condition::Condition;
use api::events::{ChangeOp, Noun};
use api::ids::{HostId, ImageId, TaskId};
use api::images::{ImageCreate, ImageFormat, ImageKind, ImagePhase};
use api::names::Name;
use api::tasks::TaskKind;
use api::units::Millis;
use api::volumes::{SIZE_MAX, VolumePhase};
use api::{ApiError, ErrorCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apply::{Outcome, Step};
use crate::command::Report;
use crate::refused::Refused;
use crate::table::Record;
use crate::volumes::VolumeRecord;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: ImageKind,
    /// How its bytes are understood.
    #[serde(default)]
    pub format: ImageFormat,
    /// The host that holds it.
    pub host: HostId,
    /// Its promised length.
    pub size_bytes: u64,
    /// The size of the disk inside a qcow2 image; known once it is ready.
    #[serde(default)]
    pub virtual_bytes: Option<u64>,
    /// Its promised SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Its phase.
    pub phase: ImagePhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for ImageRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}

impl ImageRecord {
    /// The size of the disk it holds, as far as that is known.
    pub fn disk_bytes(&self) -> u64 {
        self.virtual_bytes.unwrap_or(self.size_bytes)
    }
}

/// A record for bytes that will be uploaded.
pub(crate) fn create(
    step: &mut Step<'_>,
    id: ImageId,
    task: TaskId,
    host: HostId,
    spec: &ImageCreate,
) -> Result<Outcome, Refused> {
    step.host_known(host)?;
    Step::fresh(&step.state.images, "image", id.0, &spec.name)?;
    let most = SIZE_MAX.bytes().unwrap_or(u64::MAX);
    if spec.size_bytes == 0 || spec.size_bytes > most {
        return Err(Refused::invalid(
            format!(
                "an image has 1 to {most} bytes, this one {}",
                spec.size_bytes
            ),
            "send the file's length in bytes",
        ));
    }
    if spec.format != ImageFormat::Raw && spec.kind != ImageKind::Disk {
        return Err(Refused::invalid(
            "only a disk has a format",
            "leave `format` out, or upload it as kind `disk`",
        ));
    }
    let sha256 = spec.sha256.to_ascii_lowercase();
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Refused::invalid(
            "`sha256` is not a SHA-256",
            "send 64 hexadecimal digits, for instance from `sha256sum`",
        ));
    }
    step.task_begin(task, TaskKind::ImageUpload, id.0)?;
    step.put_image(ImageRecord {
        id,
        name: spec.name.clone(),
        kind: spec.kind,
        format: spec.format,
        host,
        size_bytes: spec.size_bytes,
        virtual_bytes: None,
        sha256,
        phase: ImagePhase::Uploading,
        condition: None,
        task: Some(task),
        created_at: step.at,
        revision: 0,
    });
    Ok(Outcome::task(id.0, task))
}

/// What became of the bytes. What cannot be true any more is void.
pub(crate) fn observed(
    step: &mut Step<'_>,
    id: ImageId,
    report: &Report,
    virtual_bytes: Option<u64>,
) -> Result<Outcome, Refused> {
    let mut image = get(step, id)?;
    match (image.phase, report) {
        (ImagePhase::Uploading, Report::Progress(progress)) => {
            if let Some(task) = image.task {
                step.task_progress(task, *progress);
            }
        }
        (ImagePhase::Uploading, Report::Ready) => {
            if image.format == ImageFormat::Qcow2 {
                if virtual_bytes.is_none() {
                    return Err(Refused::invalid(
                        format!(
                            "image `{}` is qcow2 and its disk's size was not said",
                            image.name
                        ),
                        "look into it first",
                    ));
                }
                image.virtual_bytes = virtual_bytes;
            }
            image.phase = ImagePhase::Ready;
            if let Some(task) = image.task.take() {
                step.task_succeeded(task);
            }
            step.put_image(image);
        }
        (ImagePhase::Uploading | ImagePhase::Ready, Report::Failed(fault)) => {
            image.phase = ImagePhase::Failed;
            image.condition = Some(fault.condition(step.at));
            if let Some(task) = image.task.take() {
                step.task_failed(task, fault.error());
            }
            step.put_image(image);
        }
        (ImagePhase::Ready, Report::Progress(_) | Report::Ready)
        | (ImagePhase::Failed | ImagePhase::Deleting, _) => {}
    }
    Ok(Outcome::object(id.0))
}

/// Wanted gone; not while a VM boots from it or a volume is being filled from it.
pub(crate) fn delete(step: &mut Step<'_>, id: ImageId, task: TaskId) -> Result<Outcome, Refused> {
    let mut image = get(step, id)?;
    let name = &image.name;
    if image.phase == ImagePhase::Deleting {
        return Err(Refused::wrong_phase(
            format!("image `{name}` is being deleted"),
            "wait for its task",
        ));
    }
    let user = step.state.usage.images.get(&id).and_then(|vms| vms.first());
    if let Some(vm) = user.and_then(|vm| step.state.vm(*vm)) {
        return Err(Refused::in_use(
            format!("image `{name}` is used by vm `{}`", vm.name),
            "delete the VM, or have it boot from another image, first",
        ));
    }
    let filling = |v: &&VolumeRecord| v.phase == VolumePhase::Creating && v.from_image == Some(id);
    if let Some(volume) = step.state.volumes().find(filling) {
        return Err(Refused::in_use(
            format!(
                "volume `{}` is being filled from image `{name}`",
                volume.name
            ),
            "wait until the volume is ready",
        ));
    }
    step.task_begin(task, TaskKind::ImageDelete, id.0)?;
    if let Some(upload) = image.task.replace(task) {
        step.task_failed(upload, superseded("image"));
    }
    image.phase = ImagePhase::Deleting;
    step.put_image(image);
    Ok(Outcome::task(id.0, task))
}

/// Its bytes are gone.
pub(crate) fn removed(step: &mut Step<'_>, id: ImageId) -> Result<Outcome, Refused> {
    let image = get(step, id)?;
    if image.phase != ImagePhase::Deleting {
        return Err(not_wanted_gone("image", &image.name));
    }
    if let Some(task) = image.task {
        step.task_succeeded(task);
    }
    step.state.images.remove(id.0);
    step.changed(Noun::Image, id.0, ChangeOp::Deleted);
    Ok(Outcome::object(id.0))
}

fn get(step: &Step<'_>, id: ImageId) -> Result<ImageRecord, Refused> {
    let image = step.state.image(id).cloned();
    image.ok_or_else(|| Refused::not_found("image", id))
}

/// The error of a task whose object was deleted before it was done.
pub(crate) fn superseded(noun: &str) -> ApiError {
    ApiError::new(
        ErrorCode::WrongPhase,
        format!("the {noun} was deleted before this was done"),
        "nothing is left to do",
    )
}

/// A host says that something is gone which nobody asked to delete.
pub(crate) fn not_wanted_gone(noun: &str, name: &Name) -> Refused {
    Refused::wrong_phase(
        format!("{noun} `{name}` is not being deleted"),
        "delete it first",
    )
}
