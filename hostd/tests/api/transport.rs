//! Below HTTP: who is let in to talk at all.

use std::time::Duration;

use api::ErrorCode;
use api::client::{Client, ClientError, Fingerprint, fetch_fingerprint};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::{Lab, Wish};
use super::raw::{Raw, tls};
use hostd::http::{HostNames, Limits};

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused_by_the_client() {
    let lab = Lab::new().await;
    let address = lab.address.to_string();
    let shown = fetch_fingerprint(&address).await.unwrap();
    assert_eq!(shown, lab.tls.fingerprint());
    let other = Fingerprint([7; 32]);
    let error = Client::https(&address, other)
        .unwrap()
        .health_get()
        .await
        .unwrap_err();
    match error {
        ClientError::Fingerprint { expected, got, .. } => {
            assert_eq!((expected, got), (other, shown))
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_new_address_changes_the_certificate_and_not_the_fingerprint() {
    let lab = Lab::new().await;
    let client = lab.stranger();
    client.health_get().await.unwrap();
    let names = HostNames {
        name: None,
        addresses: vec!["192.0.2.9".parse().unwrap(), "127.0.0.1".parse().unwrap()],
    };
    assert!(lab.tls.renew(&names).unwrap());
    lab.stranger().health_get().await.unwrap();
    client.health_get().await.unwrap();
    assert_eq!(
        fetch_fingerprint(&lab.address.to_string()).await.unwrap(),
        lab.tls.fingerprint()
    );
}

/// RFC 8446 §4.1.2: a ClientHello without `supported_versions` asks for TLS 1.2 at most.
#[tokio::test]
async fn tls_1_2_is_refused() {
    let lab = Lab::new().await;
    let mut hello = vec![0x03, 0x03];
    hello.extend([9; 32]);
    // No session id; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // supported_groups: secp256r1; signature_algorithms: ecdsa_secp256r1_sha256; ec_point_formats: uncompressed.
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 11, 0, 2, 1, 0,
    ];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![
        22,
        3,
        1,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);
    let mut tcp = TcpStream::connect(lab.address).await.unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    // A fatal alert: protocol_version.
    assert_eq!(
        (answer[0], &answer[5..]),
        (21, [2, 70].as_slice()),
        "{answer:?}"
    );
}

#[tokio::test]
async fn plain_http_and_a_silent_peer_are_hung_up_on() {
    let limits = Limits {
        handshake_within: Duration::from_millis(200),
        ..Limits::default()
    };
    let lab = Lab::wish(Wish {
        limits,
        ..Wish::default()
    })
    .await;
    let mut plain = TcpStream::connect(lab.address).await.unwrap();
    plain
        .write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    let mut silent = TcpStream::connect(lab.address).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn http_2_answers_too() {
    let lab = Lab::new().await;
    let stream = tls(&lab, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let uri = format!("https://{}/api/v1/health", lab.address);
        let request = hyper::Request::get(uri)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let reply = sender.send_request(request).await.unwrap();
        assert_eq!(reply.status(), 200);
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            serde_json::from_slice::<api::system::Health>(&body)
                .unwrap()
                .version,
            "0.0.0-test"
        );
    }
}

#[tokio::test]
async fn too_many_connections_are_dropped_and_places_come_back() {
    let limits = Limits {
        connections_per_address: 2,
        ..Limits::default()
    };
    let lab = Lab::wish(Wish {
        limits,
        ..Wish::default()
    })
    .await;
    let (mut one, mut two) = (Raw::stranger(&lab), Raw::stranger(&lab));
    assert_eq!(one.send("GET", "/api/v1/health", None).await.status, 200);
    assert_eq!(two.send("GET", "/api/v1/health", None).await.status, 200);
    let third = lab.stranger().health_get().await.unwrap_err();
    assert!(matches!(third, ClientError::Connect { .. }), "{third:?}");
    drop(one);
    let again = async {
        while lab.stranger().health_get().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again)
        .await
        .unwrap();
}

#[tokio::test]
async fn endless_and_countless_headers_are_refused() {
    let lab = Lab::new().await;
    for (count, length) in [(1, 64 * 1024), (100, 10)] {
        let mut stream = tls(&lab, b"http/1.1").await;
        let mut request = "GET /api/v1/health HTTP/1.1\r\nhost: x\r\n".to_owned();
        for at in 0..count {
            request.push_str(&format!("x-{at}: {}\r\n", "y".repeat(length)));
        }
        request.push_str("\r\n");
        // The server may hang up before all of it is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let status = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        assert!(
            status.starts_with("HTTP/1.1 431") || answer.is_empty(),
            "{status}"
        );
    }
    lab.stranger().health_get().await.unwrap();
}

#[tokio::test]
async fn a_revision_that_is_not_there_yet_is_waited_for() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let now = admin.vm_list().await.unwrap().revision;
    let mut raw = Raw::with_token(&lab, lab.secret("admin").await);
    let path = format!("/api/v1/vms?at_least={}", now + 2);
    let (answer, _) = tokio::join!(raw.send("GET", &path, None), async {
        for name in ["one", "two", "three"] {
            let volume =
                serde_json::from_value(serde_json::json!({"name": name, "size": 1})).unwrap();
            admin.volume_create(&volume).await.unwrap();
        }
    });
    assert_eq!(answer.status, 200);
    let revision: u64 = answer.headers["lqx-revision"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(revision >= now + 2);
    assert_eq!(answer.json()["revision"], revision);
    raw.send("GET", "/api/v1/vms?at_least=x", None)
        .await
        .is_refusal(ErrorCode::BadRequest, "no number");
}
