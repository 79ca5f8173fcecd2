//! Volumes.

use api::ApiError;
use api::endpoints::{Accepted, List, Removal};
use api::ids::{TaskId, VolumeId};
use api::names::Ref;
use api::volumes::{Volume, VolumeCreate};
use hostd_state::Command;

use crate::http::call::{Call, Reply, gone_meanwhile, object_of, task_of};
use crate::http::error::not_found;

pub(super) async fn volume_list(call: Call) -> Result<Reply, ApiError> {
    let (items, revision) =
        call.look(|state| state.volumes().map(|v| state.volume_view(v)).collect())?;
    Reply::json(&List::<Volume> { items, revision }, revision)
}

pub(super) async fn volume_get(call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("volume")?;
    let (found, revision) =
        call.look(|state| state.volume_ref(&reference).map(|v| state.volume_view(v)))?;
    Reply::json(
        &found.ok_or_else(|| not_found("volume", &reference))?,
        revision,
    )
}

pub(super) async fn volume_create(call: Call) -> Result<Reply, ApiError> {
    let spec: VolumeCreate = call.body()?;
    let name = spec.name.to_string();
    let host = call.context.host()?;
    let command = Command::VolumeCreate {
        volume: VolumeId::mint(),
        task: TaskId::mint(),
        host,
        spec,
    };
    let (revision, outcome) = call.propose(&name, command).await?;
    let id = VolumeId(object_of(&outcome)?);
    let (found, _) = call.look(|state| state.volume(id).map(|v| state.volume_view(v)))?;
    let object = found.ok_or_else(|| gone_meanwhile("volume"))?;
    Reply::json(
        &Accepted {
            object,
            task: task_of(&outcome)?,
            revision,
        },
        revision,
    )
}

pub(super) async fn volume_delete(call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("volume")?;
    let volume = match &reference {
        Ref::Id(id) => VolumeId(*id),
        Ref::Name(_) => {
            let (found, _) = call.look(|state| state.volume_ref(&reference).map(|v| v.id))?;
            found.ok_or_else(|| not_found("volume", &reference))?
        }
    };
    let command = Command::VolumeDelete {
        volume,
        task: TaskId::mint(),
    };
    let (revision, outcome) = call.propose(&reference.to_string(), command).await?;
    Reply::json(
        &Removal {
            id: volume.0,
            task: task_of(&outcome)?,
            revision,
        },
        revision,
    )
}
