//! Fetching a seed or a UKI by plain HTTP, for machines that were booted from the net.
//!
//! Plain HTTP proves nothing: `lqx.seed_sha256=` and `lqx.uki_sha256=` do. HTTPS would need certificates that a blank
//! machine does not have; it is refused, not pretended.

use std::io::Write;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Without a byte for this long, the server is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// It could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL we understand.
    #[error("`{0}` is not an http:// URL")]
    Url(String),
    /// HTTPS.
    #[error("`{0}`: https is not implemented; use http with a sha256")]
    Https(String),
    /// No connection.
    #[error("could not connect to {0}")]
    Connect(String, #[source] std::io::Error),
    /// The server said nothing for a while.
    #[error("no answer within {} s", SILENCE.as_secs())]
    Silence,
    /// Broken off, or not HTTP.
    #[error("the transfer failed")]
    Http(#[from] hyper::Error),
    /// Not 200.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// More than allowed.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
    /// Writing it down failed.
    #[error("could not store it")]
    Store(#[source] std::io::Error),
    /// Not the promised bytes.
    #[error("its SHA-256 is {found}, promised was {promised}")]
    Checksum {
        /// Of what came.
        found: String,
        /// What should have come.
        promised: String,
    },
}

impl FetchError {
    /// Trying again may help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect(..) | Self::Silence | Self::Http(_) => true,
            Self::Status(status) => status.is_server_error(),
            _ => false,
        }
    }
}

/// Writes what `url` has to `to`; returns its length.
pub async fn fetch(
    url: &str,
    sha256: Option<&str>,
    at_most: u64,
    to: &mut (impl Write + Send),
) -> Result<u64, FetchError> {
    let bad = || FetchError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(FetchError::Https(url.to_owned())),
        _ => return Err(bad()),
    }
    let authority = uri.authority().ok_or_else(bad)?;
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let connect = |error| FetchError::Connect(authority.to_string(), error);
    let stream = timeout(SILENCE, TcpStream::connect((host, port)))
        .await
        .map_err(|_| FetchError::Silence)?
        .map_err(connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .header(header::USER_AGENT, "limiquantix-installer")
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad())?;
    let done = async {
        let reply = timeout(SILENCE, sender.send_request(request))
            .await
            .map_err(|_| FetchError::Silence)??;
        if reply.status() != StatusCode::OK {
            return Err(FetchError::Status(reply.status()));
        }
        let mut body = reply.into_body();
        let mut len = 0;
        let mut hash = Sha256::new();
        while let Some(frame) = timeout(SILENCE, body.frame())
            .await
            .map_err(|_| FetchError::Silence)?
        {
            if let Ok(bytes) = frame?.into_data() {
                len += bytes.len() as u64;
                if len > at_most {
                    return Err(FetchError::TooLong(at_most));
                }
                hash.update(&bytes);
                to.write_all(&bytes).map_err(FetchError::Store)?;
            }
        }
        let found = hex(&hash.finalize());
        match sha256 {
            Some(promised) if !promised.eq_ignore_ascii_case(&found) => Err(FetchError::Checksum {
                found,
                promised: promised.to_owned(),
            }),
            _ => Ok(len),
        }
    };
    let result = done.await;
    connection.abort();
    result
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
