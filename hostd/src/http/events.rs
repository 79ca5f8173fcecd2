//! Changes since a revision, as server-sent events.
//!
//! One command may change several objects under one revision. Only the last event of a revision carries its `id:`, so
//! a client that was cut off in the middle resumes before the revision and misses none of it.

use std::pin::Pin;
use std::time::Duration;

use api::endpoints::{IDEMPOTENCY_KEY_LEN_MAX, REVISION};
use api::events::Event;
use api::units::Millis;
use api::{ApiError, ErrorCode};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::call::{Call, Reply};
use super::error::bad_request;
use crate::auth::Caller;
use crate::cluster::Cluster;
use crate::watch::TooOld;

/// A sign of life on a quiet stream; also how often the caller's token is looked at again.
const BEAT: Duration = Duration::from_secs(15);

type Changes = BoxStream<'static, Result<Event, TooOld>>;

struct Live {
    changes: Changes,
    /// Taken from `changes` to see whether it belongs to the same revision.
    ahead: Option<Event>,
    cluster: Cluster,
    caller: Caller,
    shutdown: CancellationToken,
}

/// The endpoint `events`.
pub(super) async fn events(call: Call) -> Result<Reply, ApiError> {
    let cluster = call.context.cluster()?.clone();
    let since = match last_event_id(&call)? {
        Some(revision) => revision,
        None => call.query("since").unwrap_or_else(|| cluster.revision()),
    };
    let changes = cluster.changes().since(since).map_err(gone)?;
    let live = Live {
        changes: Box::pin(changes),
        ahead: None,
        cluster,
        caller: call.caller,
        shutdown: call.shutdown,
    };
    // The id alone: who is cut off before the first change knows where to resume.
    let hello = stream::once(std::future::ready(Ok(Bytes::from(format!(
        "id: {since}\n\n"
    )))));
    let rest = stream::unfold(live, |mut live| async move {
        let bytes = live.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), live))
    });
    let mut response = Response::new(Body::from_stream(hello.chain(rest)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    response
        .headers_mut()
        .insert(HeaderName::from_static(REVISION), since.into());
    Ok(Reply::Raw(response))
}

fn gone(too_old: TooOld) -> ApiError {
    ApiError::new(
        ErrorCode::Gone,
        too_old.to_string(),
        "list again, then follow events since the list's revision",
    )
}

fn last_event_id(call: &Call) -> Result<Option<u64>, ApiError> {
    let Some(value) = call.headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let short = text
        .get(..text.len().min(IDEMPOTENCY_KEY_LEN_MAX))
        .unwrap_or_default();
    text.parse()
        .map(Some)
        .map_err(|_| bad_request(format!("`Last-Event-ID: {short}` is not a revision")))
}

impl Live {
    /// The next piece of the stream; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        let event = match self.ahead.take() {
            Some(event) => event,
            None => {
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return None,
                    next = self.changes.next() => next?.ok()?,
                    () = tokio::time::sleep(BEAT) => {
                        return self.still_allowed().then(|| Bytes::from_static(b": quiet\n\n"));
                    }
                }
            }
        };
        // All changes of a revision become visible together: what is not there now does not belong to it.
        self.ahead = match Pin::new(&mut self.changes).next().now_or_never() {
            Some(next) => next.and_then(Result::ok),
            None => None,
        };
        let more = self
            .ahead
            .as_ref()
            .is_some_and(|ahead| ahead.revision == event.revision);
        let data = serde_json::to_string(&event).ok()?;
        let text = if more {
            format!("data: {data}\n\n")
        } else {
            format!("id: {}\ndata: {data}\n\n", event.revision)
        };
        Some(Bytes::from(text))
    }

    fn still_allowed(&self) -> bool {
        still_allowed(&self.cluster, &self.caller)
    }
}

/// A stream may outlive the token that opened it: signing out must end it.
pub(super) fn still_allowed(cluster: &Cluster, caller: &Caller) -> bool {
    match caller {
        Caller::Nobody => false,
        Caller::Console => true,
        Caller::User { token, .. } => cluster.read(|state| {
            let now = Millis::now();
            state
                .token(*token)
                .is_some_and(|token| now < token.expires_at)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_forgotten_is_gone() {
        let changes = crate::watch::Changes::new(10);
        let refused = changes.since(9).map(drop).map_err(gone).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Gone);
        assert!(changes.since(10).is_ok());
    }
}
