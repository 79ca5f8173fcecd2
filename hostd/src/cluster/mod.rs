//! Agreement: the only way to change the state that all hosts share.
//!
//! [`Cluster::propose`] hands a command to Raft and answers once it is applied on this host; [`Cluster::read`] looks at
//! the state in memory. openraft's types do not leave this folder.
//!
//! `node` is Raft's life on this host; below it `log` and `writer` keep entries and vote on the disk, `machine` feeds
//! the state, `snapshots` keeps its copy; `encoding` is what the bytes on the disk mean; `transport` talks to nobody yet.

mod encoding;
mod log;
mod machine;
mod node;
mod snapshots;
mod transport;
mod types;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::ids::HostId;
use api::{ApiError, ErrorCode};
use hostd_state::{Command, Meta, Outcome, Refused, State};
use tokio::sync::{Semaphore, watch};

use self::node::{Node, Parts};
use self::types::Proposal;
use crate::watch::Changes;

pub use self::log::OpenLogError;
pub use self::node::StartError;
pub use self::snapshots::SnapshotFileError;

/// How this host takes part.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Where log and snapshots lie; made when it is not there.
    pub dir: PathBuf,
    /// This host.
    pub host: HostId,
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// An election begins after at least this long without a leader.
    pub election_min: Duration,
    /// And at most this long.
    pub election_max: Duration,
}

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was judged, and refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No leader, shutting down or overloaded: nothing was decided.
    #[error("the cluster cannot decide now: {0}")]
    Unavailable(String),
    /// The outcome is unknown.
    #[error("the cluster did not decide in time")]
    Timeout,
    /// The log could not be written; this daemon ends.
    #[error("the log could not be written: {0}")]
    Storage(String),
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        let message = error.to_string();
        match error {
            ProposeError::Refused(refused) => refused.into(),
            ProposeError::Unavailable(_) => {
                ApiError::new(ErrorCode::Unavailable, message, "try again in a moment")
            }
            ProposeError::Timeout => ApiError::new(
                ErrorCode::Timeout,
                message,
                "the outcome is unknown; ask again with the same idempotency key",
            ),
            ProposeError::Storage(_) => ApiError::new(
                ErrorCode::Internal,
                message,
                "look at the host's disk and log",
            ),
        }
    }
}

/// Most proposals under way at once; more are told to come again.
const PROPOSALS_MAX: usize = 1024;

/// The handle on agreement and on the local state. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    node: Node,
    state: Arc<RwLock<State>>,
    changes: Changes,
    proposals: Arc<Semaphore>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = self.revision();
        f.debug_struct("Cluster")
            .field("revision", &revision)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Opens log and snapshots, rebuilds the state and takes part. A host without a log becomes a cluster of one.
    /// When this returns, the state has everything that was ever acknowledged here.
    pub async fn start(config: ClusterConfig) -> Result<Self, StartError> {
        let (node, parts) = Node::start(&config).await?;
        Ok(Self::of(node, parts))
    }

    fn of(node: Node, parts: Parts) -> Self {
        Self {
            node,
            state: parts.state,
            changes: parts.changes,
            proposals: Arc::new(Semaphore::new(PROPOSALS_MAX)),
        }
    }

    /// Has a command agreed on and applied here. Gives its revision and outcome; both are on the disk.
    pub async fn propose(
        &self,
        meta: Meta,
        command: Command,
    ) -> Result<(u64, Outcome), ProposeError> {
        let _permit = self.proposals.try_acquire().map_err(|_| {
            ProposeError::Unavailable(format!("{PROPOSALS_MAX} commands are under way already"))
        })?;
        let (revision, judged) = self.node.propose(Proposal { meta, command }).await?;
        Ok((revision, judged?))
    }

    /// Looks at the state. Keep it short: commands wait meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The revision the local state has reached.
    pub fn revision(&self) -> u64 {
        self.changes.revision()
    }

    /// Waits until the local state has reached `revision`; `false` when it did not in time.
    pub async fn at_least(&self, revision: u64, timeout: Duration) -> bool {
        let mut told = self.watch();
        let reached = told.wait_for(|now| *now >= revision);
        matches!(tokio::time::timeout(timeout, reached).await, Ok(Ok(_)))
    }

    /// Told the revision after every applied command.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.watch()
    }

    /// The recent changes.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Waits until this host's log or Raft has failed for good, and says why. The daemon must end then: nothing can be
    /// decided any more, and only a fresh start finds out what the disk has.
    pub async fn fatal(&self) -> String {
        self.node.fatal().await
    }

    /// Ends this host's part: what was acknowledged is on the disk, and the log is closed. Other handles find the
    /// cluster unavailable.
    pub async fn shutdown(self) {
        self.node.shutdown().await;
    }
}
