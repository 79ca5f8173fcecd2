//! A VM's serial console: bytes between a WebSocket and the VM process's socket.

use std::io;
use std::time::Duration;

use api::ids::VmId;
use api::{ApiError, ErrorCode};
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::call::{Call, Reply};
use super::error::{internal, not_found};
use super::events::still_allowed;
use crate::auth::Caller;
use crate::cluster::Cluster;

/// Largest message a client may send: nobody types more at once.
const MESSAGE_LEN_MAX: usize = 64 * 1024;
/// Bytes taken from the console at once.
const CHUNK_LEN: usize = 16 * 1024;
/// A ping on a quiet line; also how often the caller's token is looked at again.
const BEAT: Duration = Duration::from_secs(20);

/// The endpoint `vm_serial`.
pub(super) async fn vm_serial(mut call: Call) -> Result<Reply, ApiError> {
    let reference = call.reference("vm")?;
    let (found, _) = call.look(|state| {
        state
            .vm_ref(&reference)
            .map(|vm| (vm.id, vm.name.to_string()))
    })?;
    let (vm, name) = found.ok_or_else(|| not_found("vm", &reference))?;
    let console = connect(&call, vm, &name).await?;
    call.note(&name, "ok").await?;
    let Some(upgrade) = call.upgrade.take() else {
        return Err(internal(
            "the connection cannot become a WebSocket",
            &"no upgrade",
        ));
    };
    let cluster = call.context.cluster()?.clone();
    let (caller, shutdown) = (call.caller, call.shutdown);
    let upgrade = upgrade
        .max_message_size(MESSAGE_LEN_MAX)
        .max_frame_size(MESSAGE_LEN_MAX);
    Ok(Reply::Raw(upgrade.on_upgrade(move |socket| async move {
        if let Err(error) = carry(socket, console, cluster, caller, shutdown).await {
            tracing::debug!(%vm, %error, "a serial console ended");
        }
    })))
}

async fn connect(call: &Call, vm: VmId, name: &str) -> Result<UnixStream, ApiError> {
    call.context
        .vms
        .connect(vm)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ApiError::new(
                ErrorCode::WrongPhase,
                format!("vm `{name}` has no process, and so no console"),
                "start it first",
            ),
            _ => internal("the console could not be reached", &error),
        })
}

async fn carry(
    socket: WebSocket,
    console: UnixStream,
    cluster: Cluster,
    caller: Caller,
    shutdown: CancellationToken,
) -> Result<(), axum::Error> {
    let (mut out, mut keys) = socket.split();
    let (mut screen, mut keyboard) = console.into_split();
    let mut chunk = vec![0; CHUNK_LEN];
    let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + BEAT, BEAT);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            read = screen.read(&mut chunk) => match read {
                Ok(0) | Err(_) => break,
                Ok(length) => out.send(Message::Binary(Bytes::copy_from_slice(&chunk[..length]))).await?,
            },
            typed = keys.next() => {
                let bytes = match typed {
                    None | Some(Ok(Message::Close(_))) => break,
                    Some(Err(error)) => return Err(error),
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => Bytes::from(text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                };
                if keyboard.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            _ = beat.tick() => {
                if !still_allowed(&cluster, &caller) {
                    break;
                }
                out.send(Message::Ping(Bytes::new())).await?;
            }
        }
    }
    out.close().await
}
