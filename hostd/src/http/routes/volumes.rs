//! Volumes.

use api::ApiError;
use api::ids::{TaskId, VolumeId};
use api::volumes::{VolumeCreate, VolumeUpdate};
use hostd_state::Command;

use crate::http::call::{Call, Reply};

pub(super) async fn volume_list(call: Call) -> Result<Reply, ApiError> {
    call.list(|state| state.volumes().map(|v| state.volume_view(v)).collect())
}

pub(super) async fn volume_get(call: Call) -> Result<Reply, ApiError> {
    call.show("volume", |state, reference| {
        state.volume_ref(reference).map(|v| state.volume_view(v))
    })
}

pub(super) async fn volume_create(call: Call) -> Result<Reply, ApiError> {
    let spec: VolumeCreate = call.body()?;
    let name = spec.name.to_string();
    let command = Command::VolumeCreate {
        volume: VolumeId::mint(),
        task: TaskId::mint(),
        host: call.context.host()?,
        spec,
    };
    call.accept("volume", &name, command, |state, id| {
        state.volume(VolumeId(id)).map(|v| state.volume_view(v))
    })
    .await
}

pub(super) async fn volume_update(call: Call) -> Result<Reply, ApiError> {
    let (volume, object) = call.target("volume", |state, reference| {
        state.volume_ref(reference).map(|v| v.id.0)
    })?;
    let command = Command::VolumeGrow {
        volume: VolumeId(volume),
        task: TaskId::mint(),
        update: call.body::<VolumeUpdate>()?,
    };
    call.accept("volume", &object, command, |state, id| {
        state.volume(VolumeId(id)).map(|v| state.volume_view(v))
    })
    .await
}

pub(super) async fn volume_delete(call: Call) -> Result<Reply, ApiError> {
    call.remove(
        "volume",
        |state, reference| state.volume_ref(reference).map(|v| v.id.0),
        |id, task| Command::VolumeDelete {
            volume: VolumeId(id),
            task,
        },
    )
    .await
}
