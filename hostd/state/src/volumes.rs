//! A volume's life.
//!
//! ```text
//! create ─► Creating ──ready──► Ready ──┐
//!               │                 │     ├──delete──► Deleting ──removed──► gone
//!               └──failed──► Failed◄┘───┘
//! ```
//!
//! A ready volume may grow: `growing_to` is what is wanted, `size` what it surely has. Its bytes are there first, then its
//! VMs know, then the record says so; what is cut off in between is done once more.
//!
//! Any number of VMs may have it read-only, or one VM may write to it.

use api::condition::Condition;
use api::events::{ChangeOp, Noun};
use api::ids::{HostId, ImageId, TaskId, VolumeId};
use api::images::{ImageKind, ImagePhase};
use api::names::Name;
use api::tasks::TaskKind;
use api::units::{Mib, Millis};
use api::volumes::{SIZE_MAX, VolumeCreate, VolumePhase, VolumeUpdate};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apply::{Outcome, Step};
use crate::command::{Fault, Report};
use crate::images::{ImageRecord, not_wanted_gone};
use crate::refused::Refused;
use crate::table::Record;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// The host that holds it.
    pub host: HostId,
    /// Its size.
    pub size: Mib,
    /// The size it is to have, while it grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growing_to: Option<Mib>,
    /// The image it is filled from.
    pub from_image: Option<ImageId>,
    /// Its phase.
    pub phase: VolumePhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for VolumeRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}

/// A volume is wanted.
pub(crate) fn create(
    step: &mut Step<'_>,
    id: VolumeId,
    task: TaskId,
    host: HostId,
    spec: &VolumeCreate,
) -> Result<Outcome, Refused> {
    step.host_known(host)?;
    Step::fresh(&step.state.volumes, "volume", id.0, &spec.name)?;
    if spec.size == Mib(0) || spec.size > SIZE_MAX {
        return Err(Refused::invalid(
            format!("a volume has 1 MiB to {SIZE_MAX}, this one {}", spec.size),
            "choose another size",
        ));
    }
    let from_image = match &spec.from_image {
        None => None,
        Some(reference) => {
            let image = step.state.image_ref(reference);
            let image = image.ok_or_else(|| Refused::not_found("image", reference))?;
            fills(image, host, spec.size)?;
            Some(image.id)
        }
    };
    step.task_begin(task, TaskKind::VolumeCreate, id.0)?;
    step.put_volume(VolumeRecord {
        id,
        name: spec.name.clone(),
        host,
        size: spec.size,
        growing_to: None,
        from_image,
        phase: VolumePhase::Creating,
        condition: None,
        task: Some(task),
        created_at: step.at,
        revision: 0,
    });
    Ok(Outcome::task(id.0, task))
}

/// The image can fill a volume of this size on this host.
fn fills(image: &ImageRecord, host: HostId, size: Mib) -> Result<(), Refused> {
    let name = &image.name;
    if image.kind != ImageKind::Disk {
        return Err(Refused::invalid(
            format!("image `{name}` is not a disk"),
            "choose an image of kind `disk`",
        ));
    }
    if image.phase != ImagePhase::Ready {
        return Err(Refused::not_ready(
            format!("image `{name}` is not ready"),
            "upload its content, or wait until that is done",
        ));
    }
    if image.host != host {
        return Err(Refused::invalid(
            format!("image `{name}` is on another host"),
            "upload it to the volume's host",
        ));
    }
    if size.bytes().is_some_and(|bytes| bytes < image.disk_bytes()) {
        let least = Mib(image.disk_bytes().div_ceil(1 << 20));
        return Err(Refused::invalid(
            format!("image `{name}` does not fit into {size}"),
            format!("choose a size of at least {least}"),
        ));
    }
    Ok(())
}

/// What became of it. What cannot be true any more is void.
pub(crate) fn observed(
    step: &mut Step<'_>,
    id: VolumeId,
    report: &Report,
) -> Result<Outcome, Refused> {
    let mut volume = get(step, id)?;
    match (volume.phase, report) {
        (VolumePhase::Creating, Report::Progress(progress)) => {
            if let Some(task) = volume.task {
                step.task_progress(task, *progress);
            }
        }
        (VolumePhase::Creating, Report::Ready) => {
            volume.phase = VolumePhase::Ready;
            if let Some(task) = volume.task.take() {
                step.task_succeeded(task);
            }
            step.put_volume(volume);
        }
        (VolumePhase::Creating | VolumePhase::Ready, Report::Failed(fault)) => {
            volume.phase = VolumePhase::Failed;
            volume.growing_to = None;
            volume.condition = Some(fault.condition(step.at));
            if let Some(task) = volume.task.take() {
                step.task_failed(task, fault.error());
            }
            step.put_volume(volume);
        }
        (VolumePhase::Ready, Report::Progress(_) | Report::Ready)
        | (VolumePhase::Failed | VolumePhase::Deleting, _) => {}
    }
    Ok(Outcome::object(id.0))
}

/// Wanted larger; one step at a time.
pub(crate) fn grow(
    step: &mut Step<'_>,
    id: VolumeId,
    task: TaskId,
    update: &VolumeUpdate,
) -> Result<Outcome, Refused> {
    let mut volume = get(step, id)?;
    let name = &volume.name;
    Refused::if_changed("volume", name, update.revision, volume.revision)?;
    if volume.phase != VolumePhase::Ready {
        return Err(Refused::wrong_phase(
            format!("volume `{name}` is not ready"),
            "wait for its task, or look at its condition",
        ));
    }
    not_growing(&volume)?;
    if update.size <= volume.size || update.size > SIZE_MAX {
        return Err(Refused::invalid(
            format!(
                "volume `{name}` has {} and can grow to {SIZE_MAX}, not to {}",
                volume.size, update.size
            ),
            "choose a larger size; a volume never shrinks",
        ));
    }
    step.task_begin(task, TaskKind::VolumeGrow, id.0)?;
    volume.growing_to = Some(update.size);
    volume.task = Some(task);
    step.put_volume(volume);
    Ok(Outcome::task(id.0, task))
}

fn not_growing(volume: &VolumeRecord) -> Result<(), Refused> {
    if volume.growing_to.is_none() {
        return Ok(());
    }
    Err(Refused::wrong_phase(
        format!("volume `{}` is growing", volume.name),
        "wait for its task",
    ))
}

/// What came of growing. What is not wanted any more is void.
pub(crate) fn grown(
    step: &mut Step<'_>,
    id: VolumeId,
    size: Mib,
    fault: Option<&Fault>,
) -> Result<Outcome, Refused> {
    let mut volume = get(step, id)?;
    if volume.growing_to == Some(size) {
        volume.growing_to = None;
        let task = volume.task.take();
        match (fault, task) {
            (None, task) => {
                volume.size = size;
                if let Some(task) = task {
                    step.task_succeeded(task);
                }
            }
            (Some(fault), Some(task)) => step.task_failed(task, fault.error()),
            (Some(_), None) => {}
        }
        step.put_volume(volume);
    }
    Ok(Outcome::object(id.0))
}

/// Wanted gone; not while it is being made, nor while a VM has it.
pub(crate) fn delete(step: &mut Step<'_>, id: VolumeId, task: TaskId) -> Result<Outcome, Refused> {
    let mut volume = get(step, id)?;
    let name = &volume.name;
    match volume.phase {
        VolumePhase::Creating => {
            return Err(Refused::wrong_phase(
                format!("volume `{name}` is still being made"),
                "wait for its task",
            ));
        }
        VolumePhase::Deleting => {
            return Err(Refused::wrong_phase(
                format!("volume `{name}` is being deleted"),
                "wait for its task",
            ));
        }
        VolumePhase::Ready | VolumePhase::Failed => {}
    }
    not_growing(&volume)?;
    let user = step
        .state
        .usage
        .volumes
        .get(&id)
        .and_then(|vms| vms.first());
    if let Some(vm) = user.and_then(|vm| step.state.vm(*vm)) {
        return Err(Refused::in_use(
            format!("volume `{name}` belongs to vm `{}`", vm.name),
            "delete the VM, or take the disk from it, first",
        ));
    }
    step.task_begin(task, TaskKind::VolumeDelete, id.0)?;
    volume.phase = VolumePhase::Deleting;
    volume.task = Some(task);
    step.put_volume(volume);
    Ok(Outcome::task(id.0, task))
}

/// Its bytes are gone.
pub(crate) fn removed(step: &mut Step<'_>, id: VolumeId) -> Result<Outcome, Refused> {
    let volume = get(step, id)?;
    if volume.phase != VolumePhase::Deleting {
        return Err(not_wanted_gone("volume", &volume.name));
    }
    if let Some(task) = volume.task {
        step.task_succeeded(task);
    }
    step.state.volumes.remove(id.0);
    step.changed(Noun::Volume, id.0, ChangeOp::Deleted);
    Ok(Outcome::object(id.0))
}

fn get(step: &Step<'_>, id: VolumeId) -> Result<VolumeRecord, Refused> {
    let volume = step.state.volume(id).cloned();
    volume.ok_or_else(|| Refused::not_found("volume", id))
}
