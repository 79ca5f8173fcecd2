//! Networks.

use api::ApiError;
use api::endpoints::{Accepted, List, Removal};
use api::ids::{NetworkId, TaskId};
use api::names::Ref;
use api::networks::{Network, NetworkCreate};
use hostd_state::Command;

use crate::http::call::{Call, Reply, gone_meanwhile, object_of, task_of};
use crate::http::error::not_found;

pub(super) async fn network_list(call: Call) -> Result<Reply, ApiError> {
    let (items, revision) =
        call.look(|state| state.networks().map(|n| state.network_view(n)).collect())?;
    Reply::json(&List::<Network> { items, revision }, revision)
}

pub(super) async fn network_get(call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("network")?;
    let (found, revision) =
        call.look(|state| state.network_ref(&reference).map(|n| state.network_view(n)))?;
    Reply::json(
        &found.ok_or_else(|| not_found("network", &reference))?,
        revision,
    )
}

pub(super) async fn network_create(call: Call) -> Result<Reply, ApiError> {
    let spec: NetworkCreate = call.body()?;
    let name = spec.name.to_string();
    let command = Command::NetworkCreate {
        network: NetworkId::mint(),
        task: TaskId::mint(),
        spec,
    };
    let (revision, outcome) = call.propose(&name, command).await?;
    let id = NetworkId(object_of(&outcome)?);
    let (found, _) = call.look(|state| state.network(id).map(|n| state.network_view(n)))?;
    let object = found.ok_or_else(|| gone_meanwhile("network"))?;
    Reply::json(
        &Accepted {
            object,
            task: task_of(&outcome)?,
            revision,
        },
        revision,
    )
}

pub(super) async fn network_delete(call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("network")?;
    let network = match &reference {
        Ref::Id(id) => NetworkId(*id),
        Ref::Name(_) => {
            let (found, _) = call.look(|state| state.network_ref(&reference).map(|n| n.id))?;
            found.ok_or_else(|| not_found("network", &reference))?
        }
    };
    let command = Command::NetworkDelete {
        network,
        task: TaskId::mint(),
    };
    let (revision, outcome) = call.propose(&reference.to_string(), command).await?;
    Reply::json(
        &Removal {
            id: network.0,
            task: task_of(&outcome)?,
            revision,
        },
        revision,
    )
}
