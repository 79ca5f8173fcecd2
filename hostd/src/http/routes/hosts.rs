//! Hosts.

use api::ApiError;
use api::endpoints::List;
use api::hosts::Host;

use crate::http::call::{Call, Reply};
use crate::http::error::not_found;

pub(super) async fn host_list(call: Call) -> Result<Reply, ApiError> {
    let (items, revision) =
        call.look(|state| state.hosts().map(|h| state.host_view(h)).collect())?;
    Reply::json(&List::<Host> { items, revision }, revision)
}

pub(super) async fn host_get(call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("host")?;
    let (found, revision) =
        call.look(|state| state.host_ref(&reference).map(|h| state.host_view(h)))?;
    Reply::json(
        &found.ok_or_else(|| not_found("host", &reference))?,
        revision,
    )
}
