//! Requests that the typed client would never send, over TLS that a browser would accept too.

use std::sync::Arc;

use api::ErrorCode;
use api::endpoints::REQUEST_ID;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::lab::Lab;

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// Asserts a well-formed refusal with this code.
    #[track_caller]
    pub fn is_refusal(&self, code: ErrorCode, about: &str) {
        let error: api::ApiError = serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{about}: {e}: {:?}", self.body));
        assert_eq!(error.code, code, "{about}: {error:?}");
        assert!(
            !error.message.is_empty() && !error.hint.is_empty(),
            "{about}: {error:?}"
        );
        let id = error
            .request_id
            .unwrap_or_else(|| panic!("{about}: no request id"));
        assert_eq!(self.headers[REQUEST_ID], id.as_str(), "{about}");
        assert_eq!(self.headers["content-type"], "application/json", "{about}");
        assert!(
            self.status.is_client_error() || self.status.is_server_error(),
            "{about}"
        );
    }
}

/// The client's side of TLS, with the appliance's authority imported as a browser would.
pub fn tls_config(lab: &Lab, protocol: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(lab.tls.authority().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

pub async fn tls(lab: &Lab, protocol: &[u8]) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(lab.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(tls_config(lab, protocol))
        .connect(name, tcp)
        .await
        .unwrap()
}

/// One HTTP/1.1 connection, dialled again when it was closed.
pub struct Raw<'a> {
    lab: &'a Lab,
    token: Option<String>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl<'a> Raw<'a> {
    pub fn stranger(lab: &'a Lab) -> Self {
        Self {
            lab,
            token: None,
            sender: None,
        }
    }

    pub fn with_token(lab: &'a Lab, token: impl Into<String>) -> Self {
        Self {
            lab,
            token: Some(token.into()),
            sender: None,
        }
    }

    pub async fn send(&mut self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.send_with(
            method,
            path,
            &[],
            body.map(|text| Bytes::copy_from_slice(text.as_bytes())),
        )
        .await
    }

    pub async fn send_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.unwrap_or_default())).unwrap();
        for attempt in 0.. {
            let sender = self.connected().await;
            let answered = sender.send_request(request.clone()).await;
            match answered {
                Ok(reply) => {
                    let (parts, body) = reply.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    return Answer {
                        status: parts.status,
                        headers: parts.headers,
                        body,
                    };
                }
                Err(error) if attempt > 2 => panic!("{method} {path}: {error}"),
                Err(_) => self.sender = None,
            }
        }
        unreachable!()
    }

    async fn connected(&mut self) -> &mut SendRequest<Full<Bytes>> {
        if let Some(sender) = &mut self.sender
            && sender.ready().await.is_err()
        {
            self.sender = None;
        }
        if self.sender.is_none() {
            let stream = tls(self.lab, b"http/1.1").await;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().unwrap()
    }
}

/// A path of the table with ids that nothing has.
pub fn path_of(endpoint: &api::endpoints::Info) -> String {
    endpoint
        .full_path()
        .split('/')
        .map(|part| {
            if part.starts_with('{') {
                "01900000-0000-7000-8000-000000000001"
            } else {
                part
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}
