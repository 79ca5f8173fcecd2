//! Entries, votes and membership as they lie on the disk: ours, not openraft's, so that another openraft is a change of
//! code and not of data.
//!
//! One byte of format, then JSON. A format is never changed; fields may be added with `#[serde(default)]`.

use std::collections::{BTreeMap, BTreeSet};

use hostd_state::{Command, Meta};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::types::{
    Batch, Entry, LogId, Member, Membership, Proposal, SnapshotMeta, StoredMembership, Vote,
};

const FORMAT: u8 = b'1';

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("nothing is there")]
    Empty,
    #[error("format {0} is not known to this version")]
    Format(u8),
    #[error("does not parse")]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct StoredLogId {
    term: u64,
    leader: Uuid,
    index: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredVote {
    term: u64,
    candidate: Uuid,
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredMembers {
    /// One set, or two while membership changes.
    voters: Vec<BTreeSet<Uuid>>,
    /// Addresses of voters and learners.
    members: BTreeMap<Uuid, String>,
}

#[derive(Serialize, Deserialize)]
struct StoredCommand {
    meta: Meta,
    command: Command,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredPayload {
    Blank,
    Commands(Vec<StoredCommand>),
    Members(StoredMembers),
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    id: StoredLogId,
    payload: StoredPayload,
}

#[derive(Serialize, Deserialize)]
struct StoredSnapshotMeta {
    last: Option<StoredLogId>,
    members_at: Option<StoredLogId>,
    members: StoredMembers,
    name: String,
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, value)?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&FORMAT, json)) => Ok(serde_json::from_slice(json)?),
        Some((format, _)) => Err(DecodeError::Format(*format)),
    }
}

impl From<&LogId> for StoredLogId {
    fn from(id: &LogId) -> Self {
        Self {
            term: id.leader_id.term,
            leader: id.leader_id.node_id.0,
            index: id.index,
        }
    }
}

impl From<StoredLogId> for LogId {
    fn from(id: StoredLogId) -> Self {
        LogId::new(CommittedLeaderId::new(id.term, Member(id.leader)), id.index)
    }
}

impl From<&Membership> for StoredMembers {
    fn from(membership: &Membership) -> Self {
        let set = |set: &BTreeSet<Member>| set.iter().map(|member| member.0).collect();
        Self {
            voters: membership.get_joint_config().iter().map(set).collect(),
            members: membership
                .nodes()
                .map(|(m, node)| (m.0, node.addr.clone()))
                .collect(),
        }
    }
}

impl From<StoredMembers> for Membership {
    fn from(stored: StoredMembers) -> Self {
        let set = |set: BTreeSet<Uuid>| set.into_iter().map(Member).collect();
        let node = |(id, addr)| (Member(id), BasicNode { addr });
        let nodes: BTreeMap<Member, BasicNode> = stored.members.into_iter().map(node).collect();
        Membership::new(stored.voters.into_iter().map(set).collect(), nodes)
    }
}

pub(super) fn log_id_encode(id: &LogId) -> Result<Vec<u8>, serde_json::Error> {
    encode(&StoredLogId::from(id))
}

pub(super) fn log_id_decode(bytes: &[u8]) -> Result<LogId, DecodeError> {
    decode::<StoredLogId>(bytes).map(LogId::from)
}

pub(super) fn vote_encode(vote: &Vote) -> Result<Vec<u8>, serde_json::Error> {
    encode(&StoredVote {
        term: vote.leader_id.term,
        candidate: vote.leader_id.node_id.0,
        committed: vote.committed,
    })
}

pub(super) fn vote_decode(bytes: &[u8]) -> Result<Vote, DecodeError> {
    let stored: StoredVote = decode(bytes)?;
    let candidate = Member(stored.candidate);
    Ok(match stored.committed {
        true => Vote::new_committed(stored.term, candidate),
        false => Vote::new(stored.term, candidate),
    })
}

pub(super) fn entry_encode(entry: &Entry) -> Result<Vec<u8>, serde_json::Error> {
    let payload = match &entry.payload {
        EntryPayload::Blank => StoredPayload::Blank,
        EntryPayload::Normal(batch) => {
            let stored = |proposal: &Proposal| StoredCommand {
                meta: proposal.meta.clone(),
                command: proposal.command.clone(),
            };
            StoredPayload::Commands(batch.0.iter().map(stored).collect())
        }
        EntryPayload::Membership(membership) => StoredPayload::Members(membership.into()),
    };
    encode(&StoredEntry {
        id: (&entry.log_id).into(),
        payload,
    })
}

pub(super) fn entry_decode(bytes: &[u8]) -> Result<Entry, DecodeError> {
    let stored: StoredEntry = decode(bytes)?;
    let payload = match stored.payload {
        StoredPayload::Blank => EntryPayload::Blank,
        StoredPayload::Commands(commands) => {
            let proposal = |stored: StoredCommand| Proposal {
                meta: stored.meta,
                command: stored.command,
            };
            EntryPayload::Normal(Batch(commands.into_iter().map(proposal).collect()))
        }
        StoredPayload::Members(members) => EntryPayload::Membership(members.into()),
    };
    Ok(Entry {
        log_id: stored.id.into(),
        payload,
    })
}

pub(super) fn snapshot_meta_encode(meta: &SnapshotMeta) -> Result<Vec<u8>, serde_json::Error> {
    encode(&StoredSnapshotMeta {
        last: meta.last_log_id.as_ref().map(StoredLogId::from),
        members_at: meta
            .last_membership
            .log_id()
            .as_ref()
            .map(StoredLogId::from),
        members: meta.last_membership.membership().into(),
        name: meta.snapshot_id.clone(),
    })
}

pub(super) fn snapshot_meta_decode(bytes: &[u8]) -> Result<SnapshotMeta, DecodeError> {
    let stored: StoredSnapshotMeta = decode(bytes)?;
    let members_at = stored.members_at.map(LogId::from);
    Ok(SnapshotMeta {
        last_log_id: stored.last.map(LogId::from),
        last_membership: StoredMembership::new(members_at, stored.members.into()),
        snapshot_id: stored.name,
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_format_on_the_disk_does_not_change_by_accident() {
        let id = |index| LogId::new(CommittedLeaderId::new(3, Member::from(1)), index);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let entry = Entry {
            log_id: id(7),
            payload: EntryPayload::Normal(Batch(vec![Proposal {
                meta: Meta::host(api::units::Millis(5)),
                command: Command::AuditNote,
            }])),
        };
        expect![[r#"1{"id":{"term":3,"leader":"00000000-0000-0000-0000-000000000001","index":7},"payload":{"commands":[{"meta":{"at":5},"command":{"command":"audit_note"}}]}}"#]]
            .assert_eq(&text(entry_encode(&entry).unwrap()));
        let voters = vec![BTreeSet::from([Member::from(1)])];
        let members = Entry {
            log_id: id(8),
            payload: EntryPayload::Membership(Membership::new(voters, None)),
        };
        expect![[r#"1{"id":{"term":3,"leader":"00000000-0000-0000-0000-000000000001","index":8},"payload":{"members":{"voters":[["00000000-0000-0000-0000-000000000001"]],"members":{"00000000-0000-0000-0000-000000000001":""}}}}"#]]
            .assert_eq(&text(entry_encode(&members).unwrap()));
        let vote = Vote::new_committed(3, Member::from(1));
        expect![[
            r#"1{"term":3,"candidate":"00000000-0000-0000-0000-000000000001","committed":true}"#
        ]]
        .assert_eq(&text(vote_encode(&vote).unwrap()));
        for entry in [entry, members] {
            assert_eq!(entry_decode(&entry_encode(&entry).unwrap()).unwrap(), entry);
        }
        assert_eq!(vote_decode(&vote_encode(&vote).unwrap()).unwrap(), vote);
        assert!(matches!(
            vote_decode(b"2{}"),
            Err(DecodeError::Format(b'2'))
        ));
    }
}
