//! The tables, and what is derived from them.

use std::collections::BTreeMap;

use api::ids::{HostId, ImageId, NetworkId, TaskId, TokenId, UserId, VmId, VolumeId};
use api::names::{Name, Ref};
use api::tasks::Task;
use api::units::Millis;
use api::users::AuditRecord;
use serde::{Deserialize, Serialize};

use crate::apply::RequestRecord;
use crate::hosts::HostRecord;
use crate::images::ImageRecord;
use crate::networks::NetworkRecord;
use crate::table::Table;
use crate::usage::Usage;
use crate::users::{TokenRecord, UserRecord};
use crate::vms::VmRecord;
use crate::volumes::VolumeRecord;

/// Everything the cluster agreed on, up to a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    pub(crate) revision: u64,
    pub(crate) hosts: Table<HostRecord>,
    pub(crate) users: Table<UserRecord>,
    pub(crate) tokens: BTreeMap<TokenId, TokenRecord>,
    pub(crate) images: Table<ImageRecord>,
    pub(crate) volumes: Table<VolumeRecord>,
    pub(crate) networks: Table<NetworkRecord>,
    pub(crate) vms: Table<VmRecord>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// By the revision that wrote them, oldest first.
    pub(crate) audit: BTreeMap<u64, AuditRecord>,
    /// Answered requests with an idempotency key, by revision.
    pub(crate) requests: BTreeMap<u64, RequestRecord>,

    /// Who uses what: derived from `vms` and `volumes`.
    #[serde(skip)]
    pub(crate) usage: Usage,
    /// Tokens by the hash of their secret: derived.
    #[serde(skip)]
    pub(crate) token_hashes: BTreeMap<String, TokenId>,
    /// Requests by user and key: derived.
    #[serde(skip)]
    pub(crate) request_keys: BTreeMap<(Option<UserId>, String), u64>,
}

impl State {
    /// The revision of the last command applied, refused ones included.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A VM.
    pub fn vm(&self, id: VmId) -> Option<&VmRecord> {
        self.vms.get(id.0)
    }

    /// A VM by id or name.
    pub fn vm_ref(&self, reference: &Ref) -> Option<&VmRecord> {
        self.vms.find(reference)
    }

    /// All VMs.
    pub fn vms(&self) -> impl DoubleEndedIterator<Item = &VmRecord> {
        self.vms.iter()
    }

    /// A volume.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.get(id.0)
    }

    /// A volume by id or name.
    pub fn volume_ref(&self, reference: &Ref) -> Option<&VolumeRecord> {
        self.volumes.find(reference)
    }

    /// All volumes.
    pub fn volumes(&self) -> impl DoubleEndedIterator<Item = &VolumeRecord> {
        self.volumes.iter()
    }

    /// A network.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkRecord> {
        self.networks.get(id.0)
    }

    /// A network by id or name.
    pub fn network_ref(&self, reference: &Ref) -> Option<&NetworkRecord> {
        self.networks.find(reference)
    }

    /// All networks.
    pub fn networks(&self) -> impl DoubleEndedIterator<Item = &NetworkRecord> {
        self.networks.iter()
    }

    /// An image.
    pub fn image(&self, id: ImageId) -> Option<&ImageRecord> {
        self.images.get(id.0)
    }

    /// An image by id or name.
    pub fn image_ref(&self, reference: &Ref) -> Option<&ImageRecord> {
        self.images.find(reference)
    }

    /// All images.
    pub fn images(&self) -> impl DoubleEndedIterator<Item = &ImageRecord> {
        self.images.iter()
    }

    /// A host.
    pub fn host(&self, id: HostId) -> Option<&HostRecord> {
        self.hosts.get(id.0)
    }

    /// A host by id or name.
    pub fn host_ref(&self, reference: &Ref) -> Option<&HostRecord> {
        self.hosts.find(reference)
    }

    /// All hosts.
    pub fn hosts(&self) -> impl DoubleEndedIterator<Item = &HostRecord> {
        self.hosts.iter()
    }

    /// A user.
    pub fn user(&self, id: UserId) -> Option<&UserRecord> {
        self.users.get(id.0)
    }

    /// A user by name: signing in.
    pub fn user_named(&self, name: &Name) -> Option<&UserRecord> {
        self.users.named(name)
    }

    /// A user by id or name.
    pub fn user_ref(&self, reference: &Ref) -> Option<&UserRecord> {
        self.users.find(reference)
    }

    /// All users.
    pub fn users(&self) -> impl DoubleEndedIterator<Item = &UserRecord> {
        self.users.iter()
    }

    /// An administrator exists.
    pub fn setup_done(&self) -> bool {
        !self.users.is_empty()
    }

    /// A token.
    pub fn token(&self, id: TokenId) -> Option<&TokenRecord> {
        self.tokens.get(&id)
    }

    /// The living token whose secret has this hash, and its user.
    pub fn token_by_hash(&self, hash: &str, now: Millis) -> Option<(&TokenRecord, &UserRecord)> {
        let token = self.tokens.get(self.token_hashes.get(hash)?)?;
        let user = self.user(token.user)?;
        (now < token.expires_at).then_some((token, user))
    }

    /// All tokens, expired ones that are not swept yet included.
    pub fn tokens(&self) -> impl DoubleEndedIterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// A task.
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// All tasks that are remembered.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.tasks.values()
    }

    /// The audit trail that is remembered, oldest first.
    pub fn audit(&self) -> impl DoubleEndedIterator<Item = &AuditRecord> {
        self.audit.values()
    }
}
