//! openraft's parameters. They go no further than this folder.

use std::fmt;
use std::io::Cursor;

use api::ids::HostId;
use hostd_state::{Command, Meta, Outcome, Refused};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proposal {
    pub(super) meta: Meta,
    pub(super) command: Command,
}

/// What one entry of the log carries: all proposals that had gathered while the entry before was written. openraft
/// 0.9 writes one entry after the other, so this is where one fsync serves many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Batch(pub(super) Vec<Proposal>);

/// What became of one proposal, and at which revision.
pub(super) type Judged = (u64, Result<Outcome, Refused>);

/// What became of each proposal of a batch; nothing for entries that carry none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer(pub(super) Vec<Judged>);

/// A voter or learner: a host. openraft wants a default, which is nobody.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub(super) struct Member(pub(super) Uuid);

impl From<HostId> for Member {
    fn from(host: HostId) -> Self {
        Self(host.0)
    }
}

/// openraft's own test suite numbers its nodes.
impl From<u64> for Member {
    fn from(number: u64) -> Self {
        Self(Uuid::from_u128(u128::from(number)))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

openraft::declare_raft_types!(
    pub(super) TypeConfig:
        D = Batch,
        R = Answer,
        NodeId = Member,
        Node = openraft::BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<Member>;
pub(super) type Vote = openraft::Vote<Member>;
pub(super) type Membership = openraft::Membership<Member, openraft::BasicNode>;
pub(super) type StoredMembership = openraft::StoredMembership<Member, openraft::BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<Member, openraft::BasicNode>;
pub(super) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(super) type StorageError = openraft::StorageError<Member>;
pub(super) type StorageIoError = openraft::StorageIOError<Member>;
