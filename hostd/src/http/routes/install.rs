//! Installing onto a disk.

use std::sync::Arc;

use api::ApiError;
use api::install::InstallRequest;

use crate::http::call::{Call, Reply};
use crate::http::error::internal;
use crate::http::hands::InstallerApi;

fn installer(call: &Call) -> Result<Arc<dyn InstallerApi>, ApiError> {
    let installer = call.context.installer.clone();
    installer.ok_or_else(|| {
        internal(
            "there is no installer",
            &"install mode without an installer",
        )
    })
}

pub(super) async fn install_get(call: Call) -> Result<Reply, ApiError> {
    Reply::json(&installer(&call)?.status().await?, None)
}

pub(super) async fn install_start(call: Call) -> Result<Reply, ApiError> {
    let request: InstallRequest = call.body()?;
    call.note(&request.disk, "ok").await?;
    Reply::json(&installer(&call)?.start(request).await?, None)
}
