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

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every request with this, and promises 10 bytes more than it sends when the status says so.
    pub(crate) async fn serve(status: &str, body: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x?y=1", listener.local_addr().unwrap());
        let short = status.contains("short");
        let len = body.len() + if short { 10 } else { 0 };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let len = stream.read(&mut asked).await.unwrap();
                assert!(asked[..len].starts_with(b"GET /x?y=1 HTTP/1.1\r\n"));
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
            }
        });
        url
    }

    async fn get(url: &str, sha256: Option<&str>) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        fetch(url, sha256, 1000, &mut bytes).await.map(|_| bytes)
    }

    #[tokio::test]
    async fn exactly_the_promised_bytes_or_a_reason() {
        let body = b"[install]".to_vec();
        let good = hex(&Sha256::digest(&body));
        let url = serve("200 OK", body.clone()).await;
        assert_eq!(get(&url, None).await.unwrap(), body);
        assert_eq!(get(&url, Some(&good.to_uppercase())).await.unwrap(), body);
        let wrong = get(&url, Some("00")).await.unwrap_err();
        assert!(matches!(wrong, FetchError::Checksum { .. }) && !wrong.is_temporary());
        let gone = get(&serve("404 Not Found", vec![]).await, None)
            .await
            .unwrap_err();
        assert!(matches!(gone, FetchError::Status(_)) && !gone.is_temporary());
        let moved = get(&serve("302 Found", vec![]).await, None)
            .await
            .unwrap_err();
        assert!(
            matches!(moved, FetchError::Status(_)),
            "redirects are not followed"
        );
        let long = get(&serve("200 OK", vec![0; 1001]).await, None)
            .await
            .unwrap_err();
        assert!(matches!(long, FetchError::TooLong(1000)));
        let short = get(&serve("200 short", body).await, None)
            .await
            .unwrap_err();
        assert!(matches!(short, FetchError::Http(_)) && short.is_temporary());
        let https = get("https://192.0.2.1/seed", None).await.unwrap_err();
        assert!(https.to_string().contains("not implemented"));
        assert!(matches!(
            get("seed.toml", None).await,
            Err(FetchError::Url(_))
        ));
    }
}
