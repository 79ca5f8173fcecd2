//! One call on its way: who asks for what, with which parameters, and how it is answered.

use std::sync::{Arc, Mutex};

use api::endpoints::Info;
use api::ids::RequestId;
use api::names::{Name, Ref};
use api::units::Millis;
use api::{ApiError, ErrorCode};
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use hostd_state::{Command, Idempotency, Meta, Outcome, State};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{bad_request, internal};
use crate::auth::{Caller, From, audit};

/// A call that was let through.
pub struct Call {
    /// What all calls share.
    pub context: Arc<Context>,
    /// What is asked for.
    pub endpoint: &'static Info,
    /// Who asks.
    pub caller: Caller,
    /// From where.
    pub from: From,
    /// Its id.
    pub request: RequestId,
    /// Ends when the daemon goes down; long replies watch it.
    pub shutdown: CancellationToken,
    pub(super) path: Vec<(String, String)>,
    pub(super) query: Vec<(&'static str, u64)>,
    pub(super) headers: HeaderMap,
    pub(super) idempotency: Option<Idempotency>,
    /// The body of a JSON request, whole.
    pub(super) json: Bytes,
    /// The body of an upload. Behind a lock because a body may move between threads but not be shared.
    pub(super) stream: Mutex<Option<Body>>,
    pub(super) upgrade: Option<WebSocketUpgrade>,
}

impl Call {
    /// A part of the path.
    pub fn param(&self, name: &str) -> &str {
        let found = self.path.iter().find(|(param, _)| param == name);
        found.map_or("", |(_, value)| value)
    }

    /// A part of the path that is a name or an id.
    pub fn reference(&self, name: &str) -> Result<Ref, ApiError> {
        let text = self.param(name);
        text.parse()
            .map_err(|e| bad_request(format!("`{text}` is neither a name nor an id: {e}")))
    }

    /// A part of the path that is an id.
    pub fn id<T: std::str::FromStr>(&self, name: &str) -> Result<T, ApiError> {
        let text = self.param(name);
        text.parse()
            .map_err(|_| bad_request(format!("`{text}` is not an id")))
    }

    /// A query parameter.
    pub fn query(&self, name: &str) -> Option<u64> {
        self.query
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }

    /// The JSON body.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        // serde would take a list for a struct, field by field.
        if self.json.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad_request("the body is not a JSON object"));
        }
        // serde_json's sentences name fields and columns, never the values of strings that were expected.
        serde_json::from_slice(&self.json)
            .map_err(|e| bad_request(format!("the body is not what is expected: {e}")))
    }

    /// Finds something in the agreed state, by the reference in the path, and gives its view and the revision.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> Result<(T, u64), ApiError> {
        Ok(self
            .context
            .cluster()?
            .read(|state| (look(state), state.revision())))
    }

    /// Has a command agreed on, with the audit record of this call about `object`.
    pub async fn propose(
        &self,
        object: &str,
        command: Command,
    ) -> Result<(u64, Outcome), ApiError> {
        let meta = Meta {
            at: Millis::now(),
            by: self.caller.user(),
            request: self.idempotency.clone(),
            audit: Some(audit::record(
                &self.caller,
                self.from,
                self.endpoint,
                object,
                self.request,
                "ok",
            )),
        };
        Ok(self.context.cluster()?.propose(meta, command).await?)
    }

    /// Records something that is no command of its own: a refusal, or an act on this machine.
    pub async fn note(&self, object: &str, outcome: &str) -> Result<(), ApiError> {
        note(
            &self.context,
            audit::record(
                &self.caller,
                self.from,
                self.endpoint,
                object,
                self.request,
                outcome,
            ),
        )
        .await
    }

    /// Proves a name and password against the throttle: what was attempted is counted until it succeeded.
    pub fn attempt(&self, name: &Name) -> Result<(), ApiError> {
        self.context
            .auth
            .throttle
            .attempt(self.from.address(), name.as_str())
    }
}

/// Puts a record into the agreed audit trail; while installing there is none, and the log has it.
pub(super) async fn note(
    context: &Context,
    record: api::users::AuditRecord,
) -> Result<(), ApiError> {
    let Some(cluster) = &context.cluster else {
        tracing::info!(
            who = record.who,
            action = record.action,
            outcome = record.outcome,
            "asked while installing"
        );
        return Ok(());
    };
    let meta = Meta {
        at: record.at,
        audit: Some(record),
        ..Meta::default()
    };
    cluster.propose(meta, Command::AuditNote).await?;
    Ok(())
}

/// How a call is answered.
#[derive(Debug)]
pub enum Reply {
    /// JSON.
    Json {
        /// Serialised.
        body: Vec<u8>,
        /// What it reflects.
        revision: Option<u64>,
    },
    /// Nothing to say.
    Empty {
        /// What the write made.
        revision: Option<u64>,
    },
    /// Text.
    Text {
        /// Its type.
        content_type: &'static str,
        /// It.
        body: String,
    },
    /// A stream or an upgrade.
    Raw(Response),
}

impl Reply {
    /// JSON that reflects a revision.
    pub fn json(
        value: &impl Serialize,
        revision: impl Into<Option<u64>>,
    ) -> Result<Self, ApiError> {
        let body = serde_json::to_vec(value)
            .map_err(|e| internal("the reply could not be written", &e))?;
        Ok(Self::Json {
            body,
            revision: revision.into(),
        })
    }
}

/// The task that a command promises.
pub(super) fn task_of(outcome: &Outcome) -> Result<api::ids::TaskId, ApiError> {
    outcome
        .task
        .ok_or_else(|| internal("the cluster gave no task", &"an outcome without a task"))
}

/// The object that a command made or worked on.
pub(super) fn object_of(outcome: &Outcome) -> Result<uuid::Uuid, ApiError> {
    outcome.object.ok_or_else(|| {
        internal(
            "the cluster gave no object",
            &"an outcome without an object",
        )
    })
}

/// It was there a moment ago.
pub(super) fn gone_meanwhile(noun: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("the request was carried out, but the {noun} is gone since"),
        "nothing is left to do",
    )
}
