//! Hosts.

use api::ApiError;

use crate::http::call::{Call, Reply};

pub(super) async fn host_list(call: Call) -> Result<Reply, ApiError> {
    call.list(|state| state.hosts().map(|h| state.host_view(h)).collect())
}

pub(super) async fn host_get(call: Call) -> Result<Reply, ApiError> {
    call.show("host", |state, reference| {
        state.host_ref(reference).map(|h| state.host_view(h))
    })
}
