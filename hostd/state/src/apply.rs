//! The only place that judges: one command in, an outcome and changes out, or a refusal.
//!
//! Each command has a function in its noun's file. Such a function first looks at everything that could speak against
//! the command, then changes the tables; once it has begun to change them it does not fail any more.

use api::ErrorCode;
use api::events::{ChangeOp, Noun};
use api::ids::{HostId, NetworkId, TaskId, UserId, VmId, VolumeId};
use api::units::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::change::Change;
use crate::command::{Command, Idempotency, Meta};
use crate::refused::{Refused, code_name};
use crate::state::State;
use crate::table::{Record, Table};
use crate::vms::VmRecord;
use crate::{hosts, images, networks, users, vms, volumes};

/// Audit records kept: about ten busy days of a small team.
pub const AUDIT_MAX: usize = 10_000;
/// Answered requests kept.
pub const REQUESTS_MAX: usize = 4096;
/// Longest time an answered request is kept: retries come within minutes.
pub const REQUESTS_KEEP: Millis = Millis(24 * 3600 * 1000);
/// Longest idempotency key and digest, bytes.
pub const KEY_LEN_MAX: usize = 255;

/// What the caller is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The object that was made or worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Uuid>,
    /// The task that will tell how it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// This is the answer to an earlier request with the same idempotency key; nothing was done now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

impl Outcome {
    /// Worked on this object, and that was all.
    pub(crate) fn object(id: Uuid) -> Self {
        Self {
            object: Some(id),
            ..Self::default()
        }
    }

    /// Works on this object; the task tells how it goes.
    pub(crate) fn task(id: Uuid, task: TaskId) -> Self {
        Self {
            object: Some(id),
            task: Some(task),
            replayed: false,
        }
    }
}

/// A command that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What the caller is answered.
    pub outcome: Outcome,
    /// What became different; one entry per object.
    pub changes: Vec<Change>,
}

/// A request with an idempotency key that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Whose key.
    pub by: Option<UserId>,
    /// The key.
    pub key: String,
    /// What it stood for.
    pub digest: String,
    /// When it was answered.
    pub at: Millis,
    /// What was answered.
    pub outcome: Outcome,
}

impl State {
    /// Carries out one command, or refuses it and changes nothing but the audit ring.
    ///
    /// `revision` is the command's place in the order of all commands, and larger than any before. A refused command's audit record
    /// is kept but not announced as a change.
    pub fn apply(
        &mut self,
        revision: u64,
        meta: &Meta,
        command: &Command,
    ) -> Result<Applied, Refused> {
        debug_assert!(revision > self.revision, "revisions only grow");
        self.revision = revision;
        let mut step = Step {
            state: self,
            revision,
            at: meta.at,
            by: meta.by,
            changes: Vec::new(),
        };
        let judged = step.judge(meta.request.as_ref(), command);
        step.audit(meta, command, judged.as_ref().err().map(|r| r.code));
        let changes = step.changes;
        judged.map(|outcome| Applied { outcome, changes })
    }

    /// The revision moves on without a command.
    pub fn skip(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }
}

/// One command being carried out.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) revision: u64,
    pub(crate) at: Millis,
    pub(crate) by: Option<UserId>,
    changes: Vec<Change>,
}

impl Step<'_> {
    fn judge(
        &mut self,
        request: Option<&Idempotency>,
        command: &Command,
    ) -> Result<Outcome, Refused> {
        if let Some(request) = request
            && let Some(outcome) = self.answered(request)?
        {
            return Ok(outcome);
        }
        let outcome = self.carry_out(command)?;
        if let Some(request) = request {
            self.remember(request, outcome);
        }
        Ok(outcome)
    }

    fn carry_out(&mut self, command: &Command) -> Result<Outcome, Refused> {
        match command {
            Command::AuditNote => Ok(Outcome::default()),

            Command::HostRegister {
                host,
                name,
                version,
                inventory,
                fingerprint,
            } => hosts::register(self, *host, name, version, inventory, fingerprint),
            Command::HostBooted { host, boot_id } => hosts::booted(self, *host, boot_id),

            Command::Setup {
                user,
                name,
                password_hash,
            } => users::setup(self, *user, name, password_hash),
            Command::UserCreate {
                user,
                name,
                role,
                password_hash,
            } => users::user_create(self, *user, name, *role, password_hash),
            Command::UserDelete { user } => users::user_delete(self, *user),
            Command::TokenCreate {
                token,
                kind,
                name,
                user,
                role,
                hash,
                expires_at,
            } => {
                let token = users::TokenRecord {
                    id: *token,
                    kind: *kind,
                    name: name.clone(),
                    user: *user,
                    role: *role,
                    hash: hash.clone(),
                    created_at: self.at,
                    expires_at: *expires_at,
                };
                users::token_create(self, token)
            }
            Command::TokenRevoke { token } => users::token_revoke(self, *token),

            Command::ImageCreate {
                image,
                task,
                host,
                spec,
            } => images::create(self, *image, *task, *host, spec),
            Command::ImageObserved {
                image,
                report,
                virtual_bytes,
            } => images::observed(self, *image, report, *virtual_bytes),
            Command::ImageDelete { image, task } => images::delete(self, *image, *task),
            Command::ImageRemoved { image } => images::removed(self, *image),

            Command::VolumeCreate {
                volume,
                task,
                host,
                spec,
            } => volumes::create(self, *volume, *task, *host, spec),
            Command::VolumeObserved { volume, report } => volumes::observed(self, *volume, report),
            Command::VolumeGrow {
                volume,
                task,
                update,
            } => volumes::grow(self, *volume, *task, update),
            Command::VolumeGrown {
                volume,
                size,
                fault,
            } => volumes::grown(self, *volume, *size, fault.as_ref()),
            Command::VolumeDelete { volume, task } => volumes::delete(self, *volume, *task),
            Command::VolumeRemoved { volume } => volumes::removed(self, *volume),

            Command::NetworkCreate {
                network,
                task,
                spec,
            } => networks::create(self, *network, *task, spec),
            Command::NetworkObserved { network, report } => {
                networks::observed(self, *network, report)
            }
            Command::NetworkDelete { network, task } => networks::delete(self, *network, *task),
            Command::NetworkRemoved { network } => networks::removed(self, *network),

            Command::VmCreate {
                vm,
                host,
                spec,
                macs,
            } => vms::spec::create(self, *vm, *host, spec, macs),
            Command::VmUpdate { vm, update, macs } => vms::spec::update(self, *vm, update, macs),
            Command::VmStart { vm, task } => vms::life::start(self, *vm, *task),
            Command::VmStop { vm, task, deadline } => vms::life::stop(self, *vm, *task, *deadline),
            Command::VmKill { vm, task } => vms::life::kill(self, *vm, *task),
            Command::VmReboot { vm, task, deadline } => {
                vms::life::reboot(self, *vm, *task, *deadline)
            }
            Command::VmDelete { vm, task } => vms::life::delete(self, *vm, *task),
            Command::VmObserved {
                vm,
                generation,
                report,
            } => vms::observed::observed(self, *vm, *generation, report),
            Command::VmRemoved { vm } => vms::observed::removed(self, *vm),
        }
    }

    /// The outcome of an earlier request with this key.
    fn answered(&self, request: &Idempotency) -> Result<Option<Outcome>, Refused> {
        if request.key.is_empty() || request.key.len().max(request.digest.len()) > KEY_LEN_MAX {
            return Err(Refused::invalid(
                format!("an idempotency key has 1 to {KEY_LEN_MAX} bytes"),
                "send a UUID",
            ));
        }
        let key = (self.by, request.key.clone());
        let Some(first) = self.state.request_keys.get(&key) else {
            return Ok(None);
        };
        match self.state.requests.get(first) {
            None => Ok(None),
            Some(first) if self.at.0.saturating_sub(first.at.0) > REQUESTS_KEEP.0 => Ok(None),
            Some(first) if first.digest == request.digest => Ok(Some(Outcome {
                replayed: true,
                ..first.outcome
            })),
            Some(_) => Err(Refused::new(
                ErrorCode::IdempotencyMismatch,
                "this idempotency key was used for another request",
                "use a fresh key for each request; the same key only to repeat the very same request",
            )),
        }
    }

    fn remember(&mut self, request: &Idempotency, outcome: Outcome) {
        let record = RequestRecord {
            by: self.by,
            key: request.key.clone(),
            digest: request.digest.clone(),
            at: self.at,
            outcome,
        };
        let index = (record.by, record.key.clone());
        if let Some(old) = self.state.request_keys.insert(index, self.revision) {
            self.state.requests.remove(&old);
        }
        self.state.requests.insert(self.revision, record);
        while let Some(oldest) = self.state.requests.first_entry() {
            let over = self.at.0.saturating_sub(oldest.get().at.0) > REQUESTS_KEEP.0;
            if !over && self.state.request_keys.len() <= REQUESTS_MAX {
                break;
            }
            let gone = oldest.remove();
            self.state.request_keys.remove(&(gone.by, gone.key));
        }
    }

    fn audit(&mut self, meta: &Meta, command: &Command, refused: Option<ErrorCode>) {
        let Some(record) = &meta.audit else { return };
        let mut record = record.clone();
        if *command != Command::AuditNote {
            record.outcome = refused.map_or_else(|| "ok".to_owned(), code_name);
        }
        self.changed(Noun::Audit, record.id.0, ChangeOp::Put);
        self.state.audit.insert(self.revision, record);
        while self.state.audit.len() > AUDIT_MAX {
            self.state.audit.pop_first();
        }
    }

    /// Notes a change; only the last one of an object counts.
    pub(crate) fn changed(&mut self, noun: Noun, id: Uuid, op: ChangeOp) {
        self.changes.retain(|c| (c.noun, c.id) != (noun, id));
        self.changes.push(Change {
            revision: self.revision,
            noun,
            id,
            op,
        });
    }

    /// Writes a VM, new or changed, and everything that follows from it: who uses what, and the revisions of the
    /// volumes, networks and hosts whose views show it.
    pub(crate) fn put_vm(&mut self, mut vm: VmRecord) {
        vm.revision = self.revision;
        let old = self.state.vms.get(vm.id.0).cloned();
        if let Some(old) = &old {
            self.state.usage.remove(old);
        }
        self.state.usage.add(&vm);
        self.changed(Noun::Vm, vm.id.0, ChangeOp::Put);
        self.touch_used(old.as_ref(), Some(&vm));
        self.state.vms.put(vm);
    }

    /// Takes a VM out, and whatever follows from it.
    pub(crate) fn remove_vm(&mut self, id: VmId) {
        let Some(old) = self.state.vms.remove(id.0) else {
            return;
        };
        self.state.usage.remove(&old);
        self.changed(Noun::Vm, id.0, ChangeOp::Deleted);
        self.touch_used(Some(&old), None);
    }

    fn touch_used(&mut self, old: Option<&VmRecord>, new: Option<&VmRecord>) {
        let volumes = |vm: Option<&VmRecord>| {
            vm.map_or_else(Vec::new, |vm| {
                vm.disks.iter().map(|d| d.volume).collect::<Vec<VolumeId>>()
            })
        };
        let networks = |vm: Option<&VmRecord>| {
            vm.map_or_else(Vec::new, |vm| {
                vm.nics
                    .iter()
                    .map(|n| n.network)
                    .collect::<Vec<NetworkId>>()
            })
        };
        let promised =
            |vm: Option<&VmRecord>| vm.filter(|vm| vm.is_up()).map(|vm| (vm.host, vm.memory));
        let (was, is) = (volumes(old), volumes(new));
        for id in was.iter().chain(&is) {
            if was.contains(id) != is.contains(id)
                && let Some(volume) = self.state.volumes.get(id.0)
            {
                let volume = volume.clone();
                self.put_volume(volume);
            }
        }
        let (was, is) = (networks(old), networks(new));
        if was != is {
            for id in was.iter().chain(&is) {
                if let Some(network) = self.state.networks.get(id.0) {
                    let network = network.clone();
                    self.put_network(network);
                }
            }
        }
        let (was, is) = (promised(old), promised(new));
        if was != is {
            for (id, _) in was.into_iter().chain(is) {
                if let Some(host) = self.state.hosts.get(id.0) {
                    let host = host.clone();
                    self.put_host(host);
                }
            }
        }
    }

    /// Writes a volume, new or changed.
    pub(crate) fn put_volume(&mut self, mut volume: volumes::VolumeRecord) {
        volume.revision = self.revision;
        self.changed(Noun::Volume, volume.id.0, ChangeOp::Put);
        self.state.volumes.put(volume);
    }

    /// Writes a network, new or changed.
    pub(crate) fn put_network(&mut self, mut network: networks::NetworkRecord) {
        network.revision = self.revision;
        self.changed(Noun::Network, network.id.0, ChangeOp::Put);
        self.state.networks.put(network);
    }

    /// Writes an image, new or changed.
    pub(crate) fn put_image(&mut self, mut image: images::ImageRecord) {
        image.revision = self.revision;
        self.changed(Noun::Image, image.id.0, ChangeOp::Put);
        self.state.images.put(image);
    }

    /// Writes a host, new or changed.
    pub(crate) fn put_host(&mut self, mut host: hosts::HostRecord) {
        host.revision = self.revision;
        self.changed(Noun::Host, host.id.0, ChangeOp::Put);
        self.state.hosts.put(host);
    }

    /// Nobody has this id and this name yet.
    pub(crate) fn fresh<R: Record>(
        table: &Table<R>,
        noun: &str,
        id: Uuid,
        name: &api::names::Name,
    ) -> Result<(), Refused> {
        if table.get(id).is_some() {
            return Err(Refused::exists(noun, id));
        }
        if table.named(name).is_some() {
            return Err(Refused::exists(noun, name));
        }
        Ok(())
    }

    /// The host is known.
    pub(crate) fn host_known(&self, host: HostId) -> Result<(), Refused> {
        match self.state.host(host) {
            Some(_) => Ok(()),
            None => Err(Refused::not_found("host", host)),
        }
    }
}
