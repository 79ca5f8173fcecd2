//! This host itself.

use std::sync::LazyLock;

use api::ApiError;
use api::endpoints::List;
use api::system::{Health, LogLine, Mode, NetworkSettings, PowerAction, PowerRequest};
use api::units::Mib;

use crate::http::call::{Call, Reply};
use crate::http::error::internal;
use crate::metrics::{self, VmCounters};

pub(super) async fn health_get(call: Call) -> Result<Reply, ApiError> {
    let context = &call.context;
    // A cluster of one that has applied something has a leader: it elected itself before.
    let ready = match (&context.cluster, context.mode) {
        (_, Mode::Install) => true,
        (Some(cluster), Mode::Run) => cluster.revision() > 0,
        (None, Mode::Run) => false,
    };
    Reply::json(
        &Health {
            mode: context.mode,
            version: context.version.clone(),
            ready,
        },
        None,
    )
}

pub(super) async fn openapi_get(_: Call) -> Result<Reply, ApiError> {
    // Anybody may ask for it: it is made once.
    static DOCUMENT: LazyLock<String> = LazyLock::new(api::openapi::text);
    Ok(Reply::Text {
        content_type: "application/json",
        body: DOCUMENT.clone(),
    })
}

pub(super) async fn metrics_get(call: Call) -> Result<Reply, ApiError> {
    let context = &call.context;
    let (vms, _) = call.look(|state| {
        let mine = state.vms().filter(|vm| Some(vm.host) == context.host);
        mine.map(|vm| (vm.id, vm.name.to_string()))
            .collect::<Vec<_>>()
    })?;
    // Each has a second to answer; all are asked at once.
    let counted = vms.into_iter().map(|(id, vm)| async move {
        let counters = context.vms.counters(id).await;
        VmCounters { vm, counters }
    });
    let counted = futures_util::future::join_all(counted).await;
    let (text, _) = call.look(|state| context.metrics.text(state, &counted))?;
    let body = text.map_err(|e| internal("the samples could not be written", &e))?;
    Ok(Reply::Text {
        content_type: metrics::CONTENT_TYPE,
        body,
    })
}

pub(super) async fn system_get(call: Call) -> Result<Reply, ApiError> {
    let context = &call.context;
    let mut system = context.system.system().await?;
    system.mode = context.mode;
    system.version = context.version.clone();
    system.host = context.host;
    system.fingerprint = context
        .tls
        .as_ref()
        .map(|tls| tls.fingerprint().to_string());
    if let Some(cluster) = &context.cluster {
        (system.memory_promised, system.revision) = cluster.read(|state| {
            let host = context.host.and_then(|host| state.host(host));
            (
                host.map_or(Mib(0), |host| state.memory_promised(host)),
                state.revision(),
            )
        });
    }
    Reply::json(&system, system.revision)
}

pub(super) async fn system_power(call: Call) -> Result<Reply, ApiError> {
    let request: PowerRequest = call.body()?;
    let what = match request.action {
        PowerAction::Reboot => "reboot",
        PowerAction::PowerOff => "power_off",
    };
    call.note(what, "ok").await?;
    call.context.system.power(request.action).await?;
    Ok(Reply::Empty { revision: None })
}

pub(super) async fn system_network_get(call: Call) -> Result<Reply, ApiError> {
    Reply::json(&call.context.system.network_get().await?, None)
}

pub(super) async fn system_network_set(call: Call) -> Result<Reply, ApiError> {
    let settings: NetworkSettings = call.body()?;
    call.note("network", "ok").await?;
    Reply::json(&call.context.system.network_set(settings).await?, None)
}

pub(super) async fn system_logs(call: Call) -> Result<Reply, ApiError> {
    let items = call.context.system.logs(call.query("since"));
    let revision = call
        .context
        .cluster
        .as_ref()
        .map_or(0, |cluster| cluster.revision());
    Reply::json(&List::<LogLine> { items, revision }, None)
}
