//! Dials, and keeps what was dialled: HTTP/1.1 over TLS or over the unix socket.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::trust::{Expect, Fingerprint, Verifier};
use super::{CONNECT_WITHIN, ClientError};

/// Idle connections kept; more are closed.
const IDLE_MAX: usize = 32;

/// A request's body.
pub(super) type RequestStream = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is already in memory.
pub(super) fn whole(bytes: Bytes) -> RequestStream {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A byte stream to the appliance.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where to and how.
pub(super) enum Dial {
    /// To the local console's socket.
    Unix(PathBuf),
    /// Over TLS.
    Tls {
        host: String,
        port: u16,
        name: ServerName<'static>,
        expect: Expect,
        verifier: Arc<Verifier>,
        config: Arc<ClientConfig>,
    },
}

impl Dial {
    pub(super) fn tls(address: &str, pinned: Fingerprint) -> Result<Self, ClientError> {
        Self::tls_expecting(address, Expect::Pinned(pinned)).map(|(dial, _)| dial)
    }

    pub(super) fn tls_any(address: &str) -> Result<(Self, Arc<Verifier>), ClientError> {
        Self::tls_expecting(address, Expect::Anything)
    }

    fn tls_expecting(address: &str, expect: Expect) -> Result<(Self, Arc<Verifier>), ClientError> {
        let (host, port) = host_and_port(address)?;
        let name = ServerName::try_from(host.clone()).map_err(|_| {
            ClientError::Invalid(format!("`{host}` is neither a host name nor an address"))
        })?;
        let verifier = Verifier::new(expect);
        let config = verifier
            .config()
            .map_err(|e| ClientError::Invalid(e.to_string()))?;
        let dial = Self::Tls {
            host,
            port,
            name,
            expect,
            verifier: verifier.clone(),
            config,
        };
        Ok((dial, verifier))
    }

    /// For errors: where to.
    pub(super) fn to(&self) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match tokio::time::timeout(CONNECT_WITHIN, self.connect_unlimited()).await {
            Ok(done) => done,
            Err(_) => Err(ClientError::Connect {
                to: self.to(),
                source: io::ErrorKind::TimedOut.into(),
            }),
        }
    }

    async fn connect_unlimited(&self) -> Result<Box<dyn Stream>, ClientError> {
        let failed = |source| ClientError::Connect {
            to: self.to(),
            source,
        };
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
            Self::Tls {
                host,
                port,
                name,
                expect,
                verifier,
                config,
            } => {
                let tcp = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(failed)?;
                tcp.set_nodelay(true).map_err(failed)?;
                let connector = TlsConnector::from(config.clone());
                match connector.connect(name.clone(), tcp).await {
                    Ok(stream) => Ok(Box::new(stream)),
                    Err(source) => match (*expect, verifier.seen()) {
                        (Expect::Pinned(expected), Some(got))
                            if expected != got && is_pin_refusal(&source) =>
                        {
                            Err(ClientError::Fingerprint {
                                to: self.to(),
                                expected,
                                got,
                            })
                        }
                        _ => Err(failed(source)),
                    },
                }
            }
        }
    }
}

fn is_pin_refusal(error: &io::Error) -> bool {
    let refusal = rustls::CertificateError::ApplicationVerificationFailure;
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|inner| *inner == rustls::Error::InvalidCertificate(refusal))
}

/// `host`, `host:port`, `[v6]:port`, a bare IPv6 address, each with or without `https://`.
fn host_and_port(address: &str) -> Result<(String, u16), ClientError> {
    let bare = address
        .strip_prefix("https://")
        .unwrap_or(address)
        .trim_end_matches('/');
    let bad = || {
        ClientError::Invalid(format!(
            "`{address}` is not an address; say `host` or `host:port`"
        ))
    };
    let (host, port) = if let Some(v6) = bare.strip_prefix('[') {
        let (host, rest) = v6.split_once(']').ok_or_else(bad)?;
        (host, rest.strip_prefix(':'))
    } else if bare.matches(':').count() > 1 {
        (bare, None)
    } else {
        match bare.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (bare, None),
        }
    };
    let port = port.map_or(Ok(443), |p| p.parse().map_err(|_| bad()))?;
    if host.is_empty() || host.contains('/') {
        return Err(bad());
    }
    Ok((host.to_owned(), port))
}

/// A reply whose body is still to come, with what is needed to use the connection again.
pub(super) struct ReplyStream {
    pub(super) reply: Response<Incoming>,
    pub(super) sender: SendRequest<RequestStream>,
}

/// The connections to one appliance.
pub(super) struct Connections {
    dial: Dial,
    idle: Mutex<Vec<SendRequest<RequestStream>>>,
}

impl Connections {
    pub(super) fn new(dial: Dial) -> Self {
        Self {
            dial,
            idle: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn to(&self) -> String {
        self.dial.to()
    }

    /// For the `Host` header.
    pub(super) fn host(&self) -> String {
        match &self.dial {
            Dial::Unix(_) => "localhost".to_owned(),
            Dial::Tls { .. } => self.dial.to(),
        }
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        self.dial.connect().await
    }

    /// Sends over an idle connection if that is allowed and there is one, else over a new one.
    pub(super) async fn send(
        &self,
        request: Request<RequestStream>,
        reuse: bool,
    ) -> Result<ReplyStream, ClientError> {
        let idle = if reuse { self.take_idle() } else { None };
        let mut sender = match idle {
            Some(sender) => sender,
            None => self.dial_http().await?,
        };
        let broken = |e: hyper::Error| ClientError::Broken(Box::new(e));
        sender.ready().await.map_err(broken)?;
        let reply = sender.send_request(request).await.map_err(broken)?;
        Ok(ReplyStream { reply, sender })
    }

    fn take_idle(&self) -> Option<SendRequest<RequestStream>> {
        let mut idle = self.idle.lock().ok()?;
        while let Some(sender) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    pub(super) fn give_back(&self, sender: SendRequest<RequestStream>) {
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < IDLE_MAX
            && !sender.is_closed()
        {
            idle.push(sender);
        }
    }

    async fn dial_http(&self) -> Result<SendRequest<RequestStream>, ClientError> {
        let stream = self.dial.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ClientError::Broken(Box::new(e)))?;
        // Ends by itself when the sender is dropped or the other end hangs up.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (given, host, port) in [
            ("192.0.2.7", "192.0.2.7", 443),
            ("https://192.0.2.7/", "192.0.2.7", 443),
            ("lqx-1:8443", "lqx-1", 8443),
            ("[2001:db8::1]:444", "2001:db8::1", 444),
            ("[2001:db8::1]", "2001:db8::1", 443),
            ("2001:db8::1", "2001:db8::1", 443),
        ] {
            assert_eq!(host_and_port(given).expect(given), (host.to_owned(), port));
        }
        for bad in ["", "https://", "a:b", "a:70000", "a/b", "[::1"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
