//! One method per endpoint, of the same name.

use std::fmt::Display;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Client, ClientError, finish, uri};
use crate::endpoints::{self as table, Accepted, List, Removal, WAIT_SECONDS_MAX};
use crate::error::ApiError;
use crate::hosts::Host;
use crate::ids::{TaskId, TokenId};
use crate::images::{Image, ImageCreate};
use crate::install::{InstallRequest, InstallStatus};
use crate::networks::{Network, NetworkCreate};
use crate::system::{Health, LogLine, NetworkSettings, PowerRequest, System};
use crate::tasks::{Task, TaskPhase};
use crate::users::{
    AuditRecord, SessionCreate, SetupRequest, SetupStatus, Token, TokenCreate, TokenCreated, User,
    UserCreate,
};
use crate::vms::{Vm, VmCreate, VmUpdate};
use crate::volumes::{Volume, VolumeCreate, VolumeUpdate};

/// Bytes read from an upload's source at once.
const CHUNK_LEN: usize = 256 * 1024;

/// Called after each chunk of an upload with the bytes sent so far.
pub type UploadProgress = Box<dyn FnMut(u64) + Send>;

macro_rules! calls {
    ($(
        $name:ident($($param:ident),*) $(body $body:ty)? => $reply:ty;
    )+) => {
        impl Client {
            $(
                #[doc = concat!("The endpoint `", stringify!($name), "` of [`crate::endpoints`].")]
                pub async fn $name(&self $(, $param: impl Display + Sync)* $(, body: &$body)?) -> Result<$reply, ClientError> {
                    calls!(@call self, $name, [$(&$param),*], $(body as &$body)?)
                }
            )+
        }
    };
    (@call $self:ident, $name:ident, $path:expr, ) => {
        $self.call(&table::$name, &$path, &[], &()).await
    };
    (@call $self:ident, $name:ident, $path:expr, $body:expr) => {
        $self.call(&table::$name, &$path, &[], $body).await
    };
}

calls! {
    health_get() => Health;
    openapi_get() => String;
    metrics_get() => String;
    setup_get() => SetupStatus;
    setup_create() body SetupRequest => User;
    session_create() body SessionCreate => TokenCreated;
    session_delete() => ();
    token_list() => List<Token>;
    token_create() body TokenCreate => TokenCreated;
    user_list() => List<User>;
    user_create() body UserCreate => User;
    user_delete(user) => ();
    host_list() => List<Host>;
    host_get(host) => Host;
    image_list() => List<Image>;
    image_get(image) => Image;
    image_create() body ImageCreate => Accepted<Image>;
    image_delete(image) => Removal;
    volume_list() => List<Volume>;
    volume_get(volume) => Volume;
    volume_create() body VolumeCreate => Accepted<Volume>;
    volume_update(volume) body VolumeUpdate => Accepted<Volume>;
    volume_delete(volume) => Removal;
    network_list() => List<Network>;
    network_get(network) => Network;
    network_create() body NetworkCreate => Accepted<Network>;
    network_delete(network) => Removal;
    vm_list() => List<Vm>;
    vm_get(vm) => Vm;
    vm_create() body VmCreate => Vm;
    vm_update(vm) body VmUpdate => Vm;
    vm_delete(vm) => Removal;
    vm_start(vm) => Accepted<Vm>;
    vm_stop(vm) => Accepted<Vm>;
    vm_kill(vm) => Accepted<Vm>;
    vm_reboot(vm) => Accepted<Vm>;
    system_get() => System;
    system_power() body PowerRequest => ();
    system_network_get() => NetworkSettings;
    system_network_set() body NetworkSettings => NetworkSettings;
    install_get() => InstallStatus;
    install_start() body InstallRequest => InstallStatus;
}

impl Client {
    /// Revokes a token.
    pub async fn token_delete(&self, token: TokenId) -> Result<(), ClientError> {
        self.call(&table::token_delete, &[&token], &[], &()).await
    }

    /// Tasks, newest first.
    pub async fn task_list(&self, limit: Option<u64>) -> Result<List<Task>, ClientError> {
        self.call(&table::task_list, &[], &optional("limit", limit), &())
            .await
    }

    /// A task; with `wait` as soon as it has ended, at the latest after that time (a minute at most).
    pub async fn task_get(
        &self,
        task: TaskId,
        wait: Option<Duration>,
    ) -> Result<Task, ClientError> {
        let seconds = wait.map(|wait| wait.as_secs().min(WAIT_SECONDS_MAX));
        self.call(&table::task_get, &[&task], &optional("wait", seconds), &())
            .await
    }

    /// Waits until a task has succeeded. A failed one is an error, and so is one that takes longer than `within`.
    pub async fn task_wait(&self, task: TaskId, within: Duration) -> Result<Task, ClientError> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Whole seconds on the wire: rounded up, so that the last wait is not a busy loop.
            let wait = Duration::from_secs(left.as_secs() + 1).min(Duration::from_secs(30));
            let seen = self.task_get(task, Some(wait)).await?;
            match seen.phase {
                TaskPhase::Succeeded => return Ok(seen),
                TaskPhase::Failed { error } => return Err(ClientError::TaskFailed(error)),
                TaskPhase::Running if left.is_zero() => return Err(ClientError::Timeout(within)),
                TaskPhase::Running => {}
            }
        }
    }

    /// Who did what, newest first.
    pub async fn audit_list(&self, limit: Option<u64>) -> Result<List<AuditRecord>, ClientError> {
        self.call(&table::audit_list, &[], &optional("limit", limit), &())
            .await
    }

    /// The host's log after a line.
    pub async fn system_logs(&self, since: Option<u64>) -> Result<List<LogLine>, ClientError> {
        self.call(&table::system_logs, &[], &optional("since", since), &())
            .await
    }

    /// Sends an image's bytes. As long as it takes: the caller limits the time if it wants to.
    pub async fn image_upload(
        &self,
        image: impl Display + Sync,
        source: impl AsyncRead + Send + Unpin + 'static,
        size_bytes: u64,
        progress: Option<UploadProgress>,
    ) -> Result<Image, ClientError> {
        let info = &table::image_upload.info;
        let request = self
            .request(info, &uri(info, &[&image], &[]))?
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, size_bytes);
        let chunks = stream::try_unfold(
            (source, 0_u64, progress),
            move |(mut source, sent, mut progress)| async move {
                let want = usize::try_from(size_bytes - sent)
                    .unwrap_or(usize::MAX)
                    .min(CHUNK_LEN);
                let mut chunk = vec![0; want];
                let got = source.read(&mut chunk).await?;
                if got == 0 {
                    return Ok(None);
                }
                chunk.truncate(got);
                let sent = sent + got as u64;
                if let Some(progress) = &mut progress {
                    progress(sent);
                }
                Ok(Some((
                    Frame::data(Bytes::from(chunk)),
                    (source, sent, progress),
                )))
            },
        );
        let request = finish(request, StreamBody::new(chunks).boxed_unsync())?;
        let reply = self.connections.send(request, false).await?;
        let bytes = self.receive(reply).await?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Protocol(e.to_string()))
    }
}

fn optional(name: &'static str, value: Option<u64>) -> Vec<(&'static str, u64)> {
    value.map(|value| (name, value)).into_iter().collect()
}

/// The refusal inside an error, for those that branch on it.
impl TryFrom<ClientError> for ApiError {
    type Error = ClientError;
    fn try_from(error: ClientError) -> Result<Self, ClientError> {
        match error {
            ClientError::Refused { error, .. } | ClientError::TaskFailed(error) => Ok(error),
            other => Err(other),
        }
    }
}
