//! Getting in: the first administrator, signing in and out, tokens for programs.

use api::client::{Client, ClientError, Fingerprint, fetch_fingerprint};
use api::users::{Secret, SessionCreate, SetupRequest, TokenCreate};
use serde_json::json;

use crate::config::{Appliance, Config, fingerprint};
use crate::failure::Failure;
use crate::options::{Login, Setup, Token, Where};
use crate::output::{Output, word};
use crate::terminal;

pub(super) async fn setup(setup: Setup, output: Output) -> Result<(), Failure> {
    let pinned = pin(&setup.to).await?;
    let password = Secret(terminal::password(setup.who.password_stdin)?);
    let client = Client::https(&setup.to.address, pinned)?;
    let request = SetupRequest {
        token: Secret(setup.token),
        name: setup.who.user.clone(),
        password: password.clone(),
    };
    client.setup_create(&request).await?;
    sign_in(
        &client,
        &setup.to,
        pinned,
        SessionCreate {
            name: setup.who.user,
            password,
        },
        output,
    )
    .await
}

pub(super) async fn login(login: Login, output: Output) -> Result<(), Failure> {
    let pinned = pin(&login.to).await?;
    let client = Client::https(&login.to.address, pinned)?;
    let password = Secret(terminal::password(login.who.password_stdin)?);
    sign_in(
        &client,
        &login.to,
        pinned,
        SessionCreate {
            name: login.who.user,
            password,
        },
        output,
    )
    .await
}

/// The certificate to hold the appliance to: as given, as kept from an earlier time, or as confirmed now.
async fn pin(to: &Where) -> Result<Fingerprint, Failure> {
    if let Some(text) = &to.fingerprint {
        return fingerprint(text);
    }
    let shown = fetch_fingerprint(&to.address).await?;
    let known = Config::read(&Config::path()?)?;
    if let Some(known) = known
        .appliances
        .get(&to.name)
        .filter(|known| known.address == to.address)
    {
        let pinned = fingerprint(&known.fingerprint)?;
        if pinned == shown {
            return Ok(pinned);
        }
        return Err(ClientError::Fingerprint {
            to: to.address.clone(),
            expected: pinned,
            got: shown,
        }
        .into());
    }
    eprintln!(
        "The certificate of {} has the SHA-256 fingerprint\n  {shown}",
        to.address
    );
    if terminal::confirmed("Is it the one on the appliance's console?")? {
        return Ok(shown);
    }
    Err(Failure::Usage(
        "not confirmed; `--fingerprint` says it without asking".to_owned(),
    ))
}

async fn sign_in(
    client: &Client,
    to: &Where,
    pinned: Fingerprint,
    who: SessionCreate,
    output: Output,
) -> Result<(), Failure> {
    let session = client.session_create(&who).await?;
    let path = Config::path()?;
    let mut config = Config::read(&path)?;
    let appliance = Appliance {
        address: to.address.clone(),
        fingerprint: pinned.to_string(),
        token: session.secret,
    };
    config.appliances.insert(to.name.clone(), appliance);
    config.current = Some(to.name.clone());
    config.write(&path)?;
    let about = json!({ "appliance": to.name, "address": to.address, "user": who.name, "expires_at": session.expires_at });
    output.object(
        &about,
        format!("signed in to {} as {}", to.address, who.name),
    )
}

pub(super) async fn logout(appliance: Option<&str>, output: Output) -> Result<(), Failure> {
    let path = Config::path()?;
    let mut config = Config::read(&path)?;
    let (name, known) = config.appliance(appliance)?;
    let name = name.to_owned();
    let ended = known.client()?.session_delete().await;
    config.appliances.remove(&name);
    if config.current.as_deref() == Some(&name) {
        config.current = None;
    }
    config.write(&path)?;
    // Forgotten here in any case; that the session lives on over there is worth an exit status.
    ended?;
    output.object(
        &json!({ "appliance": name }),
        format!("signed out of {name}"),
    )
}

pub(super) async fn token(client: &Client, token: Token, output: Output) -> Result<(), Failure> {
    match token {
        Token::Ls => {
            let tokens = client.token_list().await?.items;
            output.list(&tokens, &["id", "name", "kind", "role"], |token| {
                vec![
                    token.id.to_string(),
                    token.name.to_string(),
                    word(&token.kind),
                    word(&token.role),
                ]
            })
        }
        Token::Create { name, role, days } => {
            let role = role.into();
            let made = client
                .token_create(&TokenCreate { name, role, days })
                .await?;
            output.object(&made, made.secret.0.clone())
        }
        Token::Revoke { token } => {
            client.token_delete(token).await?;
            output.object(&json!({ "id": token }), format!("token {token} revoked"))
        }
    }
}
