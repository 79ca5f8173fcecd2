//! The nouns of `api`, a handler of a few lines per endpoint.

mod hosts;
mod images;
mod install;
mod networks;
mod setup;
mod system;
mod tasks;
mod users;
mod vms;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::endpoints::{self, Info, Method};
use api::ids::RequestId;
use api::{ApiError, ErrorCode};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use tokio_util::sync::CancellationToken;

use super::call::{Call, Reply};
use super::context::Context;
use super::dispatch::{Handler, Target, answer, refuse};
use super::{events, serial};

fn handler<F, T>(handler: F) -> Handler
where
    F: Fn(Call) -> T + Send + Sync + 'static,
    T: Future<Output = Result<Reply, ApiError>> + Send + 'static,
{
    Arc::new(move |call| Box::pin(handler(call)))
}

macro_rules! handlers {
    ($($module:ident: $($name:ident)+;)+) => {
        /// The handler of each endpoint, by its name.
        fn handlers() -> BTreeMap<&'static str, Handler> {
            BTreeMap::from([$($((endpoints::$name.info.name, handler($module::$name)),)+)+])
        }
    };
}

handlers! {
    system: health_get openapi_get metrics_get system_get system_power system_network_get system_network_set system_logs;
    setup: setup_get setup_create session_create session_delete;
    users: token_list token_create token_delete user_list user_create user_delete audit_list;
    hosts: host_list host_get;
    images: image_list image_get image_create image_upload image_delete;
    volumes: volume_list volume_get volume_create volume_update volume_delete;
    networks: network_list network_get network_create network_delete;
    vms: vm_list vm_get vm_create vm_update vm_delete vm_start vm_stop vm_kill vm_reboot;
    serial: vm_serial;
    tasks: task_list task_get;
    events: events;
    install: install_get install_start;
}

/// The router: each row of the table with its handler, and a refusal for everything else.
pub(super) fn router(context: Arc<Context>, shutdown: CancellationToken) -> Router {
    let handlers = handlers();
    let mut router = Router::new();
    for endpoint in endpoints::all() {
        // A row without a handler is found by the test below, and answers that it is not built.
        let handler = handlers
            .get(endpoint.name)
            .cloned()
            .unwrap_or_else(|| missing(endpoint));
        let target = Target {
            context: context.clone(),
            shutdown: shutdown.clone(),
            endpoint,
            handler,
        };
        let service = move |request: Request<Body>| answer(target.clone(), request);
        router = router.route(&endpoint.full_path(), on(filter(endpoint.method), service));
    }
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
}

fn missing(endpoint: &'static Info) -> Handler {
    handler(move |_| async move {
        Err(ApiError::new(
            ErrorCode::NotImplemented,
            format!("`{}` is not built yet", endpoint.name),
            "wait for a later version",
        ))
    })
}

fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Patch => MethodFilter::PATCH,
        Method::Delete => MethodFilter::DELETE,
    }
}

async fn no_such_path() -> Response {
    let error = ApiError::new(
        ErrorCode::NotFound,
        "there is nothing at this path",
        "see /api/v1/openapi.json",
    );
    refuse(RequestId::mint(), error)
}

async fn wrong_method() -> Response {
    let error = ApiError::new(
        ErrorCode::MethodNotAllowed,
        "this path does not take this method",
        "see /api/v1/openapi.json, and the header `Allow`",
    );
    refuse(RequestId::mint(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_handler_and_every_handler_a_row() {
        let handlers: Vec<_> = handlers().into_keys().collect();
        let mut rows: Vec<_> = endpoints::all().into_iter().map(|row| row.name).collect();
        rows.sort_unstable();
        assert_eq!(handlers, rows);
    }
}
