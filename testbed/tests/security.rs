//! What a stranger on the network can not do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::ErrorCode;
use api::client::{ClientError, fetch_fingerprint};
use api::users::{Role, Secret, SessionCreate, SetupRequest, TokenCreate};
use testbed::expect::refused;
use testbed::guest::demonstration;
use testbed::lab::{ADMIN, Lab, lab_test};
use testbed::tls;

/// All of it against one appliance: resuming one for each sentence would be the larger part of the work.
#[test]
fn strangers_get_nothing() -> Result<()> {
    lab_test("strangers_get_nothing", async |lab| {
        lab.prepared().await?;
        credentials(lab).await?;
        certificates(lab).await?;
        bodies(lab)?;
        roles(lab).await?;
        let appliance = lab.appliance()?;
        ensure!(
            appliance.api.health_get().await?.ready,
            "it is not well after all that"
        );
        Ok(())
    })
}

async fn credentials(lab: &mut Lab) -> Result<()> {
    let appliance = lab.appliance()?;
    let stranger = appliance.stranger(None)?;
    refused(stranger.vm_list().await, ErrorCode::Unauthenticated).context("without a token")?;
    let forged = stranger
        .clone()
        .with_token(Secret(format!("{}x", appliance.access.token)));
    refused(forged.vm_list().await, ErrorCode::Unauthenticated).context("with a forged token")?;
    let empty = stranger.clone().with_token(Secret(String::new()));
    refused(empty.vm_list().await, ErrorCode::Unauthenticated).context("with an empty token")?;

    let setup = SetupRequest {
        token: Secret("0000-0000".to_owned()),
        name: "mallory".parse()?,
        password: Secret("a long enough password".to_owned()),
    };
    refused(stranger.setup_create(&setup).await, ErrorCode::SetupDone).context("a second setup")?;
    ensure!(
        stranger.setup_get().await?.token.is_none(),
        "the setup token is told over the network"
    );

    let wrong = SessionCreate {
        name: ADMIN.parse()?,
        password: Secret("not the password".to_owned()),
    };
    let mut limited = false;
    for _ in 0..30 {
        match stranger.session_create(&wrong).await {
            Err(ClientError::Refused { error, .. }) if error.code == ErrorCode::RateLimited => {
                limited = true;
                break;
            }
            other => refused(other, ErrorCode::Unauthenticated)
                .context("a wrong password")
                .map(drop)?,
        }
    }
    ensure!(limited, "thirty wrong passwords in a row and nobody minds");
    // The one who is in already goes on working.
    appliance.api.vm_list().await?;
    Ok(())
}

async fn certificates(lab: &mut Lab) -> Result<()> {
    let appliance = lab.appliance()?;
    let other = "00".repeat(32);
    let misled = appliance.stranger(Some(&other))?;
    ensure!(
        matches!(
            misled.health_get().await,
            Err(ClientError::Fingerprint { .. })
        ),
        "another certificate was accepted"
    );
    let shown = fetch_fingerprint(&appliance.address()?).await?;
    ensure!(
        shown.to_string() == appliance.access.fingerprint,
        "it shows {shown} on the network"
    );
    let address = appliance.address()?;
    ensure!(!tls::agrees_to_tls12(&address)?, "TLS 1.2 was accepted");

    // Plain HTTP to the TLS port gets no page.
    let mut plain = TcpStream::connect(&address)?;
    plain.set_read_timeout(Some(Duration::from_secs(20)))?;
    plain.write_all(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    ensure!(
        !String::from_utf8_lossy(&answer).contains("200 OK"),
        "plain HTTP was answered"
    );
    Ok(())
}

fn bodies(lab: &mut Lab) -> Result<()> {
    let appliance = lab.appliance()?;
    let address = appliance.address()?;
    let token = appliance.access.token.clone();
    let ask = |request: Vec<u8>| -> Result<String> { tls::ask(&address, &request) };
    let post = |path: &str, extra: &str, body: &[u8]| -> Vec<u8> {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nConnection: close\r\n{extra}Content-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };

    for (what, body) in [
        ("no JSON", &b"{"[..]),
        ("another type", b"[1,2]"),
        (
            "an unknown field",
            br#"{"name":"x","size":1,"colour":"red"}"#,
        ),
        ("a name that is a path", br#"{"name":"../../etc","size":1}"#),
        (
            "bytes that are no text",
            b"{\"name\":\"\xff\xfe\",\"size\":1}",
        ),
    ] {
        let answer = ask(post("/api/v1/volumes", "", body))?;
        ensure!(answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        ensure!(
            answer.contains("\"code\"") && answer.contains("\"hint\""),
            "{what} gets no reason: {answer}"
        );
    }
    let nested = "[".repeat(100_000);
    let answer = ask(post("/api/v1/volumes", "", nested.as_bytes()))?;
    ensure!(answer.starts_with("HTTP/1.1 4"), "deep nesting: {answer}");

    let large = vec![b' '; 2 << 20];
    let answer = ask(post("/api/v1/volumes", "", &large))?;
    ensure!(
        answer.starts_with("HTTP/1.1 413") || answer.is_empty(),
        "2 MiB of body: {answer}"
    );

    let header = format!("X-Filler: {}\r\n", "x".repeat(200_000));
    let answer = ask(post("/api/v1/volumes", &header, b"{}"))?;
    ensure!(
        answer.starts_with("HTTP/1.1 4") || answer.is_empty(),
        "a header of 200 kB: {answer}"
    );

    for request in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /api/v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let answer = ask([request, b"GET / HTTP/1.0\r\n\r\n"].concat())?;
        ensure!(
            !answer.starts_with("HTTP/1.1 2") && !answer.contains("root:"),
            "{request:?}: {answer}"
        );
    }
    Ok(())
}

async fn roles(lab: &mut Lab) -> Result<()> {
    let appliance = lab.appliance()?;
    let viewer = TokenCreate {
        name: "watcher".parse()?,
        role: Role::Viewer,
        days: 1,
    };
    let viewer = appliance.api.token_create(&viewer).await?;
    let api = appliance.stranger(None)?.with_token(viewer.secret);
    api.vm_list().await.context("a viewer may look")?;
    refused(
        api.vm_create(&demonstration("sneaky")?).await,
        ErrorCode::Forbidden,
    )?;
    let more = TokenCreate {
        name: "more".parse()?,
        role: Role::Admin,
        days: 1,
    };
    refused(api.token_create(&more).await, ErrorCode::Forbidden)
        .context("a token above its maker's role")?;
    appliance.api.token_delete(viewer.id).await?;
    refused(api.vm_list().await, ErrorCode::Unauthenticated).context("a revoked token")?;
    Ok(())
}
