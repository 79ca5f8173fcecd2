//! A typed client over the table of endpoints: the CLI, the console and the testbed use it.
//!
//! Start at [`Client`]. `trust` decides whom we talk to, `connection` dials and keeps connections, `calls` has one
//! method per endpoint, `events` and `serial` are the two streams.

mod calls;
mod connection;
mod events;
mod serial;
mod trust;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, StatusCode, header};
use uuid::Uuid;

use crate::endpoints::{Endpoint, IDEMPOTENCY_KEY, Info, ReplyBody, RequestBody};
use crate::error::ApiError;
use crate::users::Secret;

use connection::{Connections, Dial, ReplyStream, RequestStream};

pub use calls::UploadProgress;
pub use events::Events;
pub use serial::{Serial, SerialReceiver, SerialSender};
pub use trust::{Fingerprint, FingerprintError, fetch_fingerprint};

/// Longest a connection may take to come up.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Longest reply we take into memory.
const REPLY_LEN_MAX: usize = 64 << 20;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The appliance refused, and says why.
    #[error("{error}")]
    Refused {
        /// The status.
        status: u16,
        /// The refusal.
        error: ApiError,
    },
    /// A task ended without what was asked.
    #[error("{0}")]
    TaskFailed(ApiError),
    /// No connection.
    #[error("could not connect to {to}")]
    Connect {
        /// Where to.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody else answered, or the appliance was installed anew.
    #[error("the certificate of {to} is not the pinned one: expected {expected}, got {got}")]
    Fingerprint {
        /// Where to.
        to: String,
        /// What was pinned.
        expected: Fingerprint,
        /// What came.
        got: Fingerprint,
    },
    /// The connection broke in the middle of a call.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long; a write may have happened.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// What came is not what the table promises.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// What the caller gave cannot be sent.
    #[error("{0}")]
    Invalid(String),
}

impl ClientError {
    /// The refusal's code, where it is one.
    pub fn code(&self) -> Option<crate::ErrorCode> {
        match self {
            Self::Refused { error, .. } | Self::TaskFailed(error) => Some(error.code),
            _ => None,
        }
    }
}

/// A client of one appliance. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    connections: Arc<Connections>,
    token: Option<Secret>,
    reply_within: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client")
            .field(&self.connections.to())
            .finish()
    }
}

impl Client {
    /// Over TLS 1.3 to `address` (`host`, `host:port` or `https://…`), which must prove the pinned certificate.
    pub fn https(address: &str, pinned: Fingerprint) -> Result<Self, ClientError> {
        Ok(Self::new(Dial::tls(address, pinned)?))
    }

    /// Over the local console's unix socket: administrator without a token, for uid 0.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Dial::Unix(path.into()))
    }

    fn new(dial: Dial) -> Self {
        Self {
            connections: Arc::new(Connections::new(dial)),
            token: None,
            reply_within: Duration::from_secs(75),
        }
    }

    /// The same, with a bearer token.
    pub fn with_token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// The same, with another limit for the time a reply may take.
    pub fn with_reply_within(mut self, limit: Duration) -> Self {
        self.reply_within = limit;
        self
    }

    /// One call. Writes carry a fresh idempotency key, so that a retry over a new connection is harmless.
    pub async fn call<Q: RequestBody, R: ReplyBody>(
        &self,
        endpoint: &Endpoint<Q, R>,
        path: &[&(dyn Display + Sync)],
        query: &[(&str, u64)],
        body: &Q::Value,
    ) -> Result<R::Value, ClientError> {
        let key = endpoint.info.writes().then(|| Uuid::new_v4().to_string());
        self.call_with_key(endpoint, path, query, body, key.as_deref())
            .await
    }

    /// One call under an idempotency key of the caller's.
    pub async fn call_with_key<Q: RequestBody, R: ReplyBody>(
        &self,
        endpoint: &Endpoint<Q, R>,
        path: &[&(dyn Display + Sync)],
        query: &[(&str, u64)],
        body: &Q::Value,
        key: Option<&str>,
    ) -> Result<R::Value, ClientError> {
        let bytes = Q::encode(body)
            .map_err(|e| ClientError::Invalid(e.to_string()))?
            .map(Bytes::from);
        let uri = uri(&endpoint.info, path, query);
        let work = async {
            let mut reused_ok = true;
            loop {
                let mut request = self.request(&endpoint.info, &uri)?;
                if let Some(key) = key {
                    request = request.header(IDEMPOTENCY_KEY, key);
                }
                if bytes.is_some() {
                    request = request.header(header::CONTENT_TYPE, "application/json");
                }
                let request = finish(
                    request,
                    connection::whole(bytes.clone().unwrap_or_default()),
                )?;
                match self.connections.send(request, reused_ok).await {
                    // An idle connection may be closed by the other end just as we use it: once more over a new one.
                    Err(ClientError::Broken(_)) if reused_ok => reused_ok = false,
                    Err(other) => return Err(other),
                    Ok(reply) => return self.receive(reply).await,
                }
            }
        };
        let bytes = self.limited(work).await?;
        R::decode(&bytes).map_err(|e| ClientError::Protocol(format!("{}: {e}", endpoint.info.name)))
    }

    async fn limited<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.reply_within, work).await {
            Ok(done) => done,
            Err(_) => Err(ClientError::Timeout(self.reply_within)),
        }
    }

    fn request(
        &self,
        info: &Info,
        uri: &str,
    ) -> Result<hyper::http::request::Builder, ClientError> {
        let mut request = Request::builder()
            .method(info.method.as_str())
            .uri(uri)
            .header(header::HOST, self.connections.host())
            .header(
                header::USER_AGENT,
                concat!("limiquantix/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(authorization) = self.authorization()? {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    fn authorization(&self) -> Result<Option<header::HeaderValue>, ClientError> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        let mut value =
            header::HeaderValue::from_str(&format!("Bearer {}", token.0)).map_err(|_| {
                ClientError::Invalid("the token has characters that no token has".to_owned())
            })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Takes a reply whole, gives the connection back, and tells success from refusal.
    async fn receive(&self, reply: ReplyStream) -> Result<Bytes, ClientError> {
        let ReplyStream { reply, sender } = reply;
        let (status, bytes) = collect(reply).await?;
        self.connections.give_back(sender);
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(refused(status, &bytes))
        }
    }
}

async fn collect(
    reply: Response<hyper::body::Incoming>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let status = reply.status();
    let body = http_body_util::Limited::new(reply.into_body(), REPLY_LEN_MAX);
    let bytes = body
        .collect()
        .await
        .map_err(ClientError::Broken)?
        .to_bytes();
    Ok((status, bytes))
}

fn refused(status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<ApiError>(bytes) {
        Ok(error) => ClientError::Refused {
            status: status.as_u16(),
            error,
        },
        Err(_) => ClientError::Protocol(format!("{status} without a reason")),
    }
}

fn finish(
    request: hyper::http::request::Builder,
    body: RequestStream,
) -> Result<Request<RequestStream>, ClientError> {
    request
        .body(body)
        .map_err(|e| ClientError::Invalid(e.to_string()))
}

fn uri(info: &Info, path: &[&(dyn Display + Sync)], query: &[(&str, u64)]) -> String {
    let mut values = path.iter();
    let mut uri = String::new();
    for part in info.full_path().split('/').skip(1) {
        uri.push('/');
        match values.as_slice().first() {
            Some(value) if part.starts_with('{') => {
                push_escaped(&mut uri, &value.to_string());
                values.next();
            }
            _ => uri.push_str(part),
        }
    }
    for (at, (name, value)) in query.iter().enumerate() {
        uri.push(if at == 0 { '?' } else { '&' });
        uri.push_str(&format!("{name}={value}"));
    }
    uri
}

/// RFC 3986 §2.3: what is not unreserved is written as `%XX`.
fn push_escaped(uri: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints;

    #[test]
    fn a_path_is_filled_and_escaped() {
        let made = uri(&endpoints::vm_start.info, &[&"../x y"], &[]);
        assert_eq!(made, "/api/v1/vms/..%2Fx%20y/start");
        let made = uri(
            &endpoints::task_get.info,
            &[&"t"],
            &[("wait", 5), ("at_least", 7)],
        );
        assert_eq!(made, "/api/v1/tasks/t?wait=5&at_least=7");
        assert_eq!(uri(&endpoints::metrics_get.info, &[], &[]), "/metrics");
    }

    #[test]
    fn a_client_never_prints_its_token() {
        let client = Client::unix("/run/lqx/api.sock").with_token(Secret("hush".to_owned()));
        assert!(!format!("{client:?}").contains("hush"));
    }
}
