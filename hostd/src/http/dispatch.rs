//! The way of one request: mode, caller, policy, parameters, body, handler, answer. The same for every endpoint.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::endpoints::{
    AT_LEAST, BodyKind, IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_LEN_MAX, Info, JSON_LEN_MAX, REQUEST_ID,
    REVISION,
};
use api::ids::RequestId;
use api::system::Mode;
use api::units::Millis;
use api::users::Secret;
use api::{ApiError, ErrorCode};
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hostd_state::Idempotency;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::call::{Call, Reply, note};
use super::context::{Context, not_installed};
use super::error::{bad_request, internal, status};
use crate::auth::token::hex;
use crate::auth::{Caller, From, audit, policy, token};

/// Longest a JSON body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for `?at_least=`.
const AT_LEAST_WITHIN: Duration = Duration::from_secs(10);

/// What answers an endpoint.
pub(super) type Handler =
    Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Reply, ApiError>> + Send + Sync>;

/// What an endpoint's route holds.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) context: Arc<Context>,
    pub(super) shutdown: CancellationToken,
    pub(super) endpoint: &'static Info,
    pub(super) handler: Handler,
}

/// Answers one request.
pub(super) async fn answer(target: Target, request: Request<Body>) -> Response {
    let began = Instant::now();
    let id = RequestId::mint();
    let endpoint = target.endpoint;
    let from = origin(request.extensions());
    let span = tracing::info_span!("request", id = %id, endpoint = endpoint.name, %from);
    let context = target.context.clone();
    let work = AssertUnwindSafe(admit_and_run(target, id, from, request)).catch_unwind();
    let response = async {
        let done = match work.await {
            Ok(done) => done,
            Err(_) => Err(internal(
                "the request could not be finished",
                &"a handler panicked",
            )),
        };
        match done {
            Ok(reply) => respond(endpoint, id, reply),
            Err(error) => refuse(id, error),
        }
    }
    .instrument(span)
    .await;
    context
        .metrics
        .request(endpoint.name, response.status().as_u16(), began.elapsed());
    response
}

/// Where a request comes from; the accept loop put it there.
pub(super) fn origin(extensions: &axum::http::Extensions) -> From {
    // Without it, nobody is trusted.
    extensions
        .get::<From>()
        .copied()
        .unwrap_or(From::Local { uid: u32::MAX })
}

async fn admit_and_run(
    target: Target,
    request_id: RequestId,
    from: From,
    request: Request<Body>,
) -> Result<Reply, ApiError> {
    let Target {
        context,
        shutdown,
        endpoint,
        handler,
    } = target;
    let (mut parts, body) = request.into_parts();
    in_mode(&context, endpoint)?;
    let caller = identify(&context, from, &parts.headers);
    if let Err(refusal) = policy::may(&caller, endpoint) {
        return Err(refused_by_policy(
            &context, endpoint, &caller, from, request_id, &parts, refusal,
        )
        .await);
    }
    let query = query(endpoint, parts.uri.query().unwrap_or_default())?;
    let path = path(&mut parts).await?;
    let (json, stream) = take_body(endpoint, &parts.headers, body).await?;
    let idempotency = idempotency(endpoint, &parts, &json)?;
    let upgrade = match endpoint.reply {
        BodyKind::WebSocket => Some(upgrade(&mut parts).await?),
        _ => None,
    };
    if let Some((_, revision)) = query.iter().find(|(name, _)| *name == AT_LEAST.name) {
        at_least(&context, *revision).await?;
    }
    let headers = parts.headers;
    let call = Call {
        context,
        endpoint,
        caller,
        from,
        request: request_id,
        shutdown,
        path,
        query,
        headers,
        idempotency,
        json,
        stream: Mutex::new(stream),
        upgrade,
    };
    if !endpoint.writes() {
        return handler(call).await;
    }
    // A write is finished even when its caller hangs up: half of one would leave an upload without its record.
    let span = tracing::Span::current();
    match tokio::spawn(handler(call).instrument(span)).await {
        Ok(done) => done,
        Err(error) => Err(internal("the request could not be finished", &error)),
    }
}

fn in_mode(context: &Context, endpoint: &Info) -> Result<(), ApiError> {
    if endpoint.modes.include(context.mode) {
        return Ok(());
    }
    Err(match context.mode {
        Mode::Install => not_installed(),
        Mode::Run => ApiError::new(
            ErrorCode::WrongMode,
            "this machine is installed",
            "boot it from the installation medium to install it again",
        ),
    })
}

/// A token goes first, so that the console may act as somebody; without one the socket speaks for itself.
fn identify(context: &Context, from: From, headers: &HeaderMap) -> Caller {
    if let Some(secret) = bearer(headers) {
        let found = context
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.read(|state| token::caller(state, &secret, Millis::now())));
        return found.unwrap_or(Caller::Nobody);
    }
    if from.is_console() {
        Caller::Console
    } else {
        Caller::Nobody
    }
}

fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| Secret(secret.trim().to_owned()))
}

/// A known caller who asks for more than they may is recorded; unknown ones are not, they could fill the trail.
async fn refused_by_policy(
    context: &Context,
    endpoint: &'static Info,
    caller: &Caller,
    from: From,
    request: RequestId,
    parts: &Parts,
    refusal: ApiError,
) -> ApiError {
    if refusal.code == ErrorCode::Forbidden && endpoint.writes() {
        let record = audit::record(
            caller,
            from,
            endpoint,
            parts.uri.path(),
            request,
            "forbidden",
        );
        if let Err(error) = note(context, record).await {
            tracing::warn!(%error, "a refusal could not be recorded");
        }
    }
    if refusal.code == ErrorCode::Unauthenticated
        && context.mode == Mode::Run
        && !context.setup_done()
    {
        return ApiError::new(
            ErrorCode::SetupRequired,
            "this machine has no administrator yet",
            "enrol one with POST /api/v1/setup and the token that the machine's console shows",
        );
    }
    refusal
}

fn query(endpoint: &Info, text: &str) -> Result<Vec<(&'static str, u64)>, ApiError> {
    let at_least = endpoint.at_least().then_some(&AT_LEAST);
    let mut found: Vec<(&'static str, u64)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(known) = endpoint
            .query
            .iter()
            .chain(at_least)
            .find(|known| known.name == name)
        else {
            return Err(bad_request(format!(
                "the query parameter `{}` is not understood here",
                shown(name)
            )));
        };
        if found.iter().any(|(name, _)| *name == known.name) {
            return Err(bad_request(format!(
                "the query parameter `{}` was given twice",
                known.name
            )));
        }
        let number = value.parse().map_err(|_| {
            bad_request(format!(
                "`{}={}` is not a whole number",
                known.name,
                shown(value)
            ))
        })?;
        found.push((known.name, number));
    }
    Ok(found)
}

/// A text of the caller's, short and plain enough for a sentence.
fn shown(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic())
        .take(40)
        .collect()
}

async fn path(parts: &mut Parts) -> Result<Vec<(String, String)>, ApiError> {
    let params = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|_| bad_request("the path cannot be read"))?;
    Ok(params
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

async fn take_body(
    endpoint: &Info,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, Option<Body>), ApiError> {
    match endpoint.request {
        BodyKind::Octets => return Ok((Bytes::new(), Some(body))),
        BodyKind::Json if !is_json(headers) => {
            return Err(bad_request(
                "the body must be sent as `Content-Type: application/json`",
            ));
        }
        _ => {}
    }
    let limit = if endpoint.request == BodyKind::Json {
        JSON_LEN_MAX
    } else {
        0
    };
    let too_large = || {
        let message = match limit {
            0 => "this takes no body".to_owned(),
            limit => format!("the body is over the limit of {limit} bytes"),
        };
        ApiError::new(ErrorCode::TooLarge, message, "send less")
    };
    let promised = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if promised.is_some_and(|promised| promised > limit as u64) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_WITHIN, Limited::new(body, limit).collect()).await;
    match read {
        Ok(Ok(collected)) => Ok((collected.to_bytes(), None)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(bad_request("the body broke off")),
        Err(_) => Err(ApiError::new(
            ErrorCode::Timeout,
            "the body did not arrive in time",
            "send it at once; nothing was done",
        )),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

fn idempotency(
    endpoint: &Info,
    parts: &Parts,
    body: &[u8],
) -> Result<Option<Idempotency>, ApiError> {
    let Some(value) = parts
        .headers
        .get(IDEMPOTENCY_KEY)
        .filter(|_| endpoint.keyed())
    else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    let visible = key.bytes().all(|b| b.is_ascii_graphic());
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_LEN_MAX || !visible {
        return Err(bad_request(format!(
            "an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_LEN_MAX} visible ASCII characters"
        )));
    }
    let mut digest = Sha256::new();
    digest.update(endpoint.name);
    digest.update([0]);
    digest.update(parts.uri.path());
    digest.update([0]);
    digest.update(body);
    Ok(Some(Idempotency {
        key: key.to_owned(),
        digest: hex(&digest.finalize()),
    }))
}

async fn upgrade(parts: &mut Parts) -> Result<WebSocketUpgrade, ApiError> {
    WebSocketUpgrade::from_request_parts(parts, &())
        .await
        .map_err(|e| bad_request(format!("this is a WebSocket: {e}")))
}

async fn at_least(context: &Context, revision: u64) -> Result<(), ApiError> {
    if context.cluster()?.at_least(revision, AT_LEAST_WITHIN).await {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Unavailable,
        format!("this host has not seen revision {revision}"),
        "ask again in a moment, or without `at_least`",
    ))
}

fn respond(endpoint: &Info, id: RequestId, reply: Reply) -> Response {
    let mut response = match reply {
        Reply::Raw(response) => response,
        Reply::Json { body, revision } => {
            let mut response = whole("application/json", body.into());
            set_revision(&mut response, revision);
            response
        }
        Reply::Empty { revision } => {
            let mut response = Response::new(Body::empty());
            set_revision(&mut response, revision);
            response
        }
        Reply::Text { content_type, body } => whole(content_type, body.into()),
    };
    if endpoint.reply != BodyKind::WebSocket {
        *response.status_mut() = StatusCode::from_u16(endpoint.status).unwrap_or(StatusCode::OK);
    }
    finish(&mut response, id);
    response
}

/// A refusal, with its request id.
pub(super) fn refuse(id: RequestId, mut error: ApiError) -> Response {
    let status = status(error.code);
    tracing::debug!(code = ?error.code, message = error.message, "refused");
    error.request_id = Some(id.to_string());
    let body = serde_json::to_vec(&error).unwrap_or_default();
    let mut response = whole("application/json", body.into());
    *response.status_mut() = status;
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    finish(&mut response, id);
    response
}

fn whole(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn set_revision(response: &mut Response, revision: Option<u64>) {
    if let Some(revision) = revision {
        response
            .headers_mut()
            .insert(HeaderName::from_static(REVISION), revision.into());
    }
}

fn finish(response: &mut Response, id: RequestId) {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(HeaderName::from_static(REQUEST_ID), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::endpoints as table;

    #[test]
    fn only_the_rows_own_query_parameters_are_understood() {
        let task_get = &table::task_get.info;
        assert_eq!(
            query(task_get, "wait=5&at_least=7").unwrap(),
            [("wait", 5), ("at_least", 7)]
        );
        assert_eq!(query(task_get, "").unwrap(), []);
        for bad in [
            "wiat=5",
            "wait=x",
            "wait=-1",
            "wait",
            "wait=1&wait=2",
            "wait=1&x",
        ] {
            assert_eq!(
                query(task_get, bad).unwrap_err().code,
                ErrorCode::BadRequest,
                "{bad}"
            );
        }
        assert!(query(&table::vm_create.info, "at_least=7").is_err());
    }

    #[test]
    fn a_bearer_token_is_taken_whatever_the_case_of_its_scheme() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(|secret| secret.0)
        };
        assert_eq!(with("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(with("bearer  abc "), Some("abc".to_owned()));
        assert_eq!(with("Basic abc"), None);
        assert_eq!(with("Bearer"), None);
    }
}
