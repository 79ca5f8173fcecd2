//! Feeds `hostd-state` with what was agreed, cuts and loads snapshots.
//!
//! The state lives in memory; durable are the log and the snapshots. At a restart it is the last snapshot plus the log
//! from there to the last entry that was known to be committed.

use std::io::Cursor;
use std::sync::{Arc, PoisonError, RwLock};

use hostd_state::{State, snapshot};
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::snapshots::{SnapshotFileError, Snapshots};
use super::types::{
    Answer, Entry, Judged, LogId, Proposal, Snapshot, SnapshotMeta, StorageError, StorageIoError,
    StoredMembership, TypeConfig,
};
use crate::watch::Changes;

/// The state machine.
#[derive(Debug)]
pub(super) struct Machine {
    state: Arc<RwLock<State>>,
    changes: Changes,
    applied: Option<LogId>,
    members: StoredMembership,
    snapshots: Snapshots,
}

impl Machine {
    /// From the last snapshot, or empty.
    pub(super) fn open(snapshots: Snapshots) -> Result<Self, SnapshotFileError> {
        let (applied, members, state) = match snapshots.load()? {
            None => (None, StoredMembership::default(), State::default()),
            Some((meta, bytes)) => {
                let state = snapshot::decode(&bytes);
                let state = state.map_err(|error| SnapshotFileError::Damaged {
                    path: "snapshot".into(),
                    why: error.to_string(),
                })?;
                (meta.last_log_id, meta.last_membership, state)
            }
        };
        Ok(Self {
            changes: Changes::new(state.revision()),
            state: Arc::new(RwLock::new(state)),
            applied,
            members,
            snapshots,
        })
    }

    /// The state that this machine feeds.
    pub(super) fn state(&self) -> Arc<RwLock<State>> {
        self.state.clone()
    }

    /// The changes that it announces.
    pub(super) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    fn apply_one(&mut self, entry: Entry) -> Answer {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Normal(batch) => Answer(
                batch
                    .0
                    .into_iter()
                    .map(|proposal| self.judge(proposal))
                    .collect(),
            ),
            EntryPayload::Membership(members) => {
                self.members = StoredMembership::new(Some(entry.log_id), members);
                Answer(Vec::new())
            }
            EntryPayload::Blank => Answer(Vec::new()),
        }
    }

    /// The commands of all batches, in order, number the revisions: the same on all hosts and after every restart.
    fn judge(&mut self, proposal: Proposal) -> Judged {
        let (revision, judged) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let revision = state.revision() + 1;
            (
                revision,
                state.apply(revision, &proposal.meta, &proposal.command),
            )
        };
        let (changes, outcome) = match judged {
            Ok(applied) => (applied.changes, Ok(applied.outcome)),
            Err(refused) => (Vec::new(), Err(refused)),
        };
        self.changes.push(revision, changes);
        (revision, outcome)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Ok(entries
            .into_iter()
            .map(|entry| self.apply_one(entry))
            .collect())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Builder {
            state: state.clone(),
            applied: self.applied,
            members: self.members.clone(),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let signature = || Some(meta.signature());
        let bytes = data.into_inner();
        let state = snapshot::decode(&bytes);
        let state = state.map_err(|error| StorageIoError::read_snapshot(signature(), &error))?;
        let saved = self.snapshots.save(meta, &bytes);
        saved.map_err(|error| StorageIoError::write_snapshot(signature(), &error))?;
        self.applied = meta.last_log_id;
        self.members = meta.last_membership.clone();
        let revision = state.revision();
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.changes.reset(revision);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let found = self.snapshots.load();
        let found = found.map_err(|error| StorageIoError::read_snapshot(None, &error))?;
        Ok(found.map(|(meta, bytes)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        }))
    }
}

/// The state as it was, to be written while the machine goes on.
pub(super) struct Builder {
    state: State,
    applied: Option<LogId>,
    members: StoredMembership,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let name = match self.applied {
            None => "empty".to_owned(),
            Some(id) => format!("{}-{}", id.leader_id.term, id.index),
        };
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.members.clone(),
            snapshot_id: name,
        };
        let state = std::mem::take(&mut self.state);
        let snapshots = self.snapshots.clone();
        let its_meta = meta.clone();
        let saving = tokio::task::spawn_blocking(move || {
            let bytes = snapshot::encode(&state);
            let bytes = bytes.map_err(|error| SnapshotFileError::Encode(error.to_string()))?;
            snapshots.save(&its_meta, &bytes)?;
            Ok::<_, SnapshotFileError>(bytes)
        });
        let saved = match saving.await {
            Ok(saved) => saved,
            Err(error) => Err(SnapshotFileError::Encode(error.to_string())),
        };
        let signature = || Some(meta.signature());
        let bytes = saved.map_err(|error| StorageIoError::write_snapshot(signature(), &error))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}
