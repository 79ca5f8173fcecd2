//! Networks.

use api::ApiError;
use api::ids::{NetworkId, TaskId};
use api::networks::NetworkCreate;
use hostd_state::Command;

use crate::http::call::{Call, Reply};

pub(super) async fn network_list(call: Call) -> Result<Reply, ApiError> {
    call.list(|state| state.networks().map(|n| state.network_view(n)).collect())
}

pub(super) async fn network_get(call: Call) -> Result<Reply, ApiError> {
    call.show("network", |state, reference| {
        state.network_ref(reference).map(|n| state.network_view(n))
    })
}

pub(super) async fn network_create(call: Call) -> Result<Reply, ApiError> {
    let spec: NetworkCreate = call.body()?;
    let name = spec.name.to_string();
    let command = Command::NetworkCreate {
        network: NetworkId::mint(),
        task: TaskId::mint(),
        spec,
    };
    call.accept("network", &name, command, |state, id| {
        state.network(NetworkId(id)).map(|n| state.network_view(n))
    })
    .await
}

pub(super) async fn network_delete(call: Call) -> Result<Reply, ApiError> {
    call.remove(
        "network",
        |state, reference| state.network_ref(reference).map(|n| n.id.0),
        |id, task| Command::NetworkDelete {
            network: NetworkId(id),
            task,
        },
    )
    .await
}
