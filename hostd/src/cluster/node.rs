//! Raft's life on this host: opened, a cluster of one if it is new, caught up, watched, closed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{ClientWriteError, Fatal, RaftError};
use openraft::{BasicNode, Config, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};

use super::log::{Log, OpenLogError};
use super::machine::Machine;
use super::snapshots::{SnapshotFileError, Snapshots};
use super::transport::Alone;
use super::types::{Batch, Judged, Member, Proposal, Raft};
use super::{ClusterConfig, ProposeError};

/// A snapshot after so many entries: what a restart replays, at most.
const SNAPSHOT_EVERY: u64 = 5000;
/// Entries kept below a snapshot, for followers that are a little behind.
const KEPT_BELOW_SNAPSHOT: u64 = 1000;
/// Most proposals in one entry of the log.
const BATCH_MAX: usize = 256;
/// Longest wait for a decision.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for the log to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why this host cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory.
    #[error("could not make the directory of the cluster's log")]
    Directory(#[source] io::Error),
    /// Its log.
    #[error(transparent)]
    Log(#[from] OpenLogError),
    /// Its snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    /// Timings that contradict each other.
    #[error("the cluster's timings do not fit together: {0}")]
    Timings(String),
    /// Raft.
    #[error("Raft did not start: {0}")]
    Raft(String),
    /// Nobody decides.
    #[error("no leader was found within {0:?}")]
    NoLeader(Duration),
}

/// Raft on this host.
#[derive(Clone)]
pub(super) struct Node {
    raft: Raft,
    proposals: mpsc::Sender<Waiting>,
    fatal: watch::Receiver<Option<String>>,
    closed: watch::Receiver<()>,
}

impl Node {
    /// Opens log and snapshot, and takes part.
    pub(super) async fn start(config: &ClusterConfig) -> Result<(Self, Parts), StartError> {
        std::fs::create_dir_all(&config.dir).map_err(StartError::Directory)?;
        let dir = config.dir.clone();
        let opening = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
            let log = Log::open(&dir)?;
            let machine = Machine::open(Snapshots::open(&dir)?)?;
            Ok((log, machine))
        });
        let opened = opening
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let (log, machine) = opened?;
        Self::run(config, log, machine).await
    }

    /// Takes part with this log and this state.
    pub(super) async fn run(
        config: &ClusterConfig,
        log: Log,
        machine: Machine,
    ) -> Result<(Self, Parts), StartError> {
        let parts = Parts {
            state: machine.state(),
            changes: machine.changes(),
        };
        let last = log.last().map(|id| id.index);
        let me = Member::from(config.host);
        let closed = log.closed();
        let raft = Raft::new(me, raft_config(config)?, Alone, log, machine);
        let raft = raft
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let fatal = watch_over(&raft);
        let (proposals, gathered) = mpsc::channel(BATCH_MAX);
        tokio::spawn(gather(raft.clone(), fatal.clone(), gathered));
        let node = Self {
            proposals,
            fatal,
            raft,
            closed,
        };
        if let Err(error) = node.lead(me, last, config).await {
            // Whoever tries again must find the log closed.
            node.shutdown().await;
            return Err(error);
        }
        Ok((node, parts))
    }

    /// A new host becomes the only voter; then everything that was ever acknowledged here is applied again.
    async fn lead(
        &self,
        me: Member,
        last: Option<u64>,
        config: &ClusterConfig,
    ) -> Result<(), StartError> {
        let raft = |error: String| StartError::Raft(error);
        let known = self.raft.is_initialized().await;
        if !known.map_err(|error| raft(error.to_string()))? {
            let alone = BTreeMap::from([(me, BasicNode::default())]);
            let first = self.raft.initialize(alone).await;
            first.map_err(|error| raft(error.to_string()))?;
        }
        // A sole voter need not wait for anybody's silence.
        let metrics = self.raft.metrics().borrow().clone();
        if metrics.state != ServerState::Leader {
            let elected = self.raft.trigger().elect().await;
            elected.map_err(|error| raft(error.to_string()))?;
        }
        let patience = config.election_max.saturating_mul(3) + Duration::from_secs(30);
        let waiting = self.raft.wait(Some(patience));
        let caught_up = waiting.metrics(
            |metrics| {
                metrics.state == ServerState::Leader
                    && metrics.last_applied.map(|id| id.index) >= last
                    && metrics.last_applied.is_some()
            },
            "leads, and has applied all that was in its log",
        );
        match caught_up.await {
            Ok(_) => Ok(()),
            Err(_) => Err(StartError::NoLeader(patience)),
        }
    }

    /// Has a proposal agreed on and applied here.
    pub(super) async fn propose(&self, proposal: Proposal) -> Result<Judged, ProposeError> {
        let (answer, told) = oneshot::channel();
        let gone = || ProposeError::Unavailable("the cluster has ended here".to_owned());
        let sent = self.proposals.send(Waiting { proposal, answer }).await;
        sent.map_err(|_| gone())?;
        match tokio::time::timeout(PROPOSE_TIMEOUT, told).await {
            Err(_) => Err(ProposeError::Timeout),
            Ok(Err(_)) => Err(gone()),
            Ok(Ok(answer)) => answer,
        }
    }

    /// Waits until Raft has failed for good.
    pub(super) async fn fatal(&self) -> String {
        let mut fatal = self.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Shut down in good order: never fatal.
            Err(_) => std::future::pending().await,
        }
    }

    /// Cuts a snapshot now.
    #[cfg(test)]
    pub(super) async fn snapshot(&self) -> Result<(), String> {
        let cut = self.raft.trigger().snapshot().await;
        cut.map_err(|error| error.to_string())
    }

    #[cfg(test)]
    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Ends Raft; its log is closed when this returns.
    pub(super) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not end in good order");
        }
        // Raft's tasks hold the log, and let go of it one after the other.
        let mut closed = self.closed.clone();
        let closing = async { while closed.changed().await.is_ok() {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!("the log is still open");
        }
    }
}

/// A proposal, and who waits for its answer.
struct Waiting {
    proposal: Proposal,
    answer: oneshot::Sender<Result<Judged, ProposeError>>,
}

/// Proposes what has gathered while the batch before was written, until nobody can propose any more.
async fn gather(
    raft: Raft,
    fatal: watch::Receiver<Option<String>>,
    mut proposals: mpsc::Receiver<Waiting>,
) {
    let mut gathered = Vec::with_capacity(BATCH_MAX);
    while proposals.recv_many(&mut gathered, BATCH_MAX).await > 0 {
        let (batch, answers): (Vec<_>, Vec<_>) =
            gathered.drain(..).map(|w| (w.proposal, w.answer)).unzip();
        match raft.client_write(Batch(batch)).await {
            Ok(response) => {
                for (answer, judged) in answers.into_iter().zip(response.data.0) {
                    // Whoever does not wait any more does not want to know.
                    let _ = answer.send(Ok(judged));
                }
            }
            Err(error) => {
                let error = why(error, &fatal);
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

fn why(
    error: RaftError<Member, ClientWriteError<Member, BasicNode>>,
    failed: &watch::Receiver<Option<String>>,
) -> ProposeError {
    match error {
        RaftError::Fatal(Fatal::StorageError(error)) => ProposeError::Storage(error.to_string()),
        // Raft has stopped meanwhile: by itself, or because it was told to.
        RaftError::Fatal(error) => match failed.borrow().as_ref() {
            Some(reason) => ProposeError::Storage(reason.clone()),
            None => ProposeError::Unavailable(error.to_string()),
        },
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
            ProposeError::Unavailable("this host does not lead".to_owned())
        }
        RaftError::APIError(error) => ProposeError::Unavailable(error.to_string()),
    }
}

/// What the handle shares with the state machine.
pub(super) struct Parts {
    pub(super) state: Arc<std::sync::RwLock<hostd_state::State>>,
    pub(super) changes: crate::watch::Changes,
}

fn raft_config(config: &ClusterConfig) -> Result<Arc<Config>, StartError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "limiquantix".to_owned(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(config.election_min),
        election_timeout_max: millis(config.election_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT_BELOW_SNAPSHOT,
        purge_batch_size: 256,
        ..Config::default()
    };
    let valid = config.validate();
    valid
        .map(Arc::new)
        .map_err(|error| StartError::Timings(error.to_string()))
}

/// Follows Raft's own account of how it is, and tells when it has failed for good.
fn watch_over(raft: &Raft) -> watch::Receiver<Option<String>> {
    let (tell, told) = watch::channel(None);
    let mut metrics = raft.metrics();
    tokio::spawn(async move {
        loop {
            let state = metrics.borrow_and_update().running_state.clone();
            match state {
                Ok(()) => {}
                Err(Fatal::Stopped) => return,
                Err(fatal) => {
                    tracing::error!(%fatal, "Raft has failed; this daemon has to end");
                    tell.send_replace(Some(fatal.to_string()));
                    // Kept, so that whoever asks later is told.
                    tell.closed().await;
                    return;
                }
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
    told
}
