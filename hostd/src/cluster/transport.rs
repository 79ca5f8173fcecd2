//! Host to host. There are no other hosts yet: a cluster has one voter, and nobody to talk to.
//!
//! Whoever is asked for is unreachable. openraft backs off after exactly that error, and retries any other at once.

use std::io;

use openraft::BasicNode;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::types::{Member, TypeConfig};

/// Connects to nobody.
pub(super) struct Alone;

/// A connection to somebody who is not there.
pub(super) struct Nobody;

impl RaftNetworkFactory<TypeConfig> for Alone {
    type Network = Nobody;

    async fn new_client(&mut self, _: Member, _: &BasicNode) -> Nobody {
        Nobody
    }
}

fn unreachable() -> Unreachable {
    Unreachable::new(&io::Error::new(
        io::ErrorKind::NotConnected,
        "this version talks to no other host",
    ))
}

type Refusal<E> = RPCError<Member, BasicNode, E>;

impl RaftNetwork<TypeConfig> for Nobody {
    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Member>, Refusal<RaftError<Member>>> {
        Err(unreachable().into())
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<Member>, Refusal<RaftError<Member, InstallSnapshotError>>>
    {
        Err(unreachable().into())
    }

    async fn vote(
        &mut self,
        _: VoteRequest<Member>,
        _: RPCOption,
    ) -> Result<VoteResponse<Member>, Refusal<RaftError<Member>>> {
        Err(unreachable().into())
    }
}
