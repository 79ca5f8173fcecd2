//! Everything that can be asked of the cluster, complete in itself.
//!
//! A command carries all that deciding needs: fresh ids, the time, random MAC addresses. It is written to the Raft
//! log as JSON, so it may only grow: new variants, and new fields with `#[serde(default)]`.

use api::hosts::Inventory;
use api::ids::{HostId, ImageId, NetworkId, TaskId, TokenId, UserId, VmId, VolumeId};
use api::names::Name;
use api::units::{Millis, Percent};
use api::users::{AuditRecord, Role, Secret, TokenKind};
use api::vms::VmExit;
use serde::{Deserialize, Serialize};

/// What comes with each command: when, by whom, under which idempotency key, and what the audit trail shall say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// The proposer's clock. The only time `apply` knows.
    pub at: Millis,
    /// The user who asked; `None` for hosts and the local console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<UserId>,
    /// A retry with the same key and digest gets the first outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Idempotency>,
    /// Kept in the audit ring, also when the command is refused. `apply` writes its `outcome`
    /// (`ok` or the error code), except for [`Command::AuditNote`], which is kept as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditRecord>,
}

impl Meta {
    /// A host's or the daemon's own command: nobody to answer to, nothing to audit.
    pub fn host(at: Millis) -> Self {
        Self {
            at,
            ..Self::default()
        }
    }
}

/// An idempotency key and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The caller's key. Keys of different users do not meet.
    pub key: String,
    /// A digest of method, path and body: the same key with another digest is refused.
    pub digest: String,
}

/// Why something failed, before it has a time: becomes a condition on the object and the error of its task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable, `snake_case`.
    pub code: String,
    /// A sentence: what happened.
    pub cause: String,
    /// A sentence: what happens next, or what to do.
    pub next: String,
}

/// What a host observed of an image, a volume or a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Under way.
    Progress(Percent),
    /// As wanted.
    Ready,
    /// Could not be made, or is damaged.
    Failed(Fault),
}

/// What a host observed of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmReport {
    /// Its process is being made.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// Its process is gone.
    Ended(VmExit),
    /// No process came to be.
    LaunchFailed(Fault),
}

/// Everything that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Nothing but `Meta::audit`: for what was refused before it became a command (a failed login, a forbidden call).
    AuditNote,

    /// A host says who it is and what it has; at every start of its daemon.
    HostRegister {
        /// Its id.
        host: HostId,
        /// Its name, unique among hosts.
        name: Name,
        /// The version it runs.
        version: String,
        /// What it has.
        inventory: Inventory,
        /// SHA-256 of its TLS certificate.
        fingerprint: String,
    },
    /// A host says which boot of its kernel this is. A new one means: whatever ran there, ended.
    HostBooted {
        /// The host.
        host: HostId,
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
    },

    /// The first administrator.
    Setup {
        /// Fresh id.
        user: UserId,
        /// Its name.
        name: Name,
        /// PHC string.
        password_hash: Secret,
    },
    /// Another user.
    UserCreate {
        /// Fresh id.
        user: UserId,
        /// Its name, unique among users.
        name: Name,
        /// What it may do.
        role: Role,
        /// PHC string.
        password_hash: Secret,
    },
    /// Removes a user and its tokens; not the last administrator.
    UserDelete {
        /// The user.
        user: UserId,
    },
    /// A session or API token.
    TokenCreate {
        /// Fresh id.
        token: TokenId,
        /// Session or API.
        kind: TokenKind,
        /// What it is for.
        name: Name,
        /// Whose.
        user: UserId,
        /// At most the user's.
        role: Role,
        /// SHA-256 of its secret, hexadecimal: what it is found by.
        hash: Secret,
        /// When it ends.
        expires_at: Millis,
    },
    /// Ends a token.
    TokenRevoke {
        /// The token.
        token: TokenId,
    },

    /// A record for bytes that will be uploaded.
    ImageCreate {
        /// Fresh id.
        image: ImageId,
        /// Fresh id of the upload's task.
        task: TaskId,
        /// The host that will hold it.
        host: HostId,
        /// What was asked.
        spec: api::images::ImageCreate,
    },
    /// What became of its bytes.
    ImageObserved {
        /// The image.
        image: ImageId,
        /// What its host saw.
        report: Report,
        /// With `Ready`, of a qcow2 image: the size of the disk inside.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        virtual_bytes: Option<u64>,
    },
    /// Wanted gone.
    ImageDelete {
        /// The image.
        image: ImageId,
        /// Fresh id.
        task: TaskId,
    },
    /// Its bytes are gone.
    ImageRemoved {
        /// The image.
        image: ImageId,
    },

    /// A volume is wanted.
    VolumeCreate {
        /// Fresh id.
        volume: VolumeId,
        /// Fresh id.
        task: TaskId,
        /// The host that will hold it.
        host: HostId,
        /// What was asked.
        spec: api::volumes::VolumeCreate,
    },
    /// What became of it.
    VolumeObserved {
        /// The volume.
        volume: VolumeId,
        /// What its host saw.
        report: Report,
    },
    /// It is to grow.
    VolumeGrow {
        /// The volume.
        volume: VolumeId,
        /// Fresh id.
        task: TaskId,
        /// What was asked.
        update: api::volumes::VolumeUpdate,
    },
    /// It has grown, for its VMs too, or it could not.
    VolumeGrown {
        /// The volume.
        volume: VolumeId,
        /// To which size.
        size: api::units::Mib,
        /// Why not.
        fault: Option<Fault>,
    },
    /// Wanted gone.
    VolumeDelete {
        /// The volume.
        volume: VolumeId,
        /// Fresh id.
        task: TaskId,
    },
    /// Its bytes are gone.
    VolumeRemoved {
        /// The volume.
        volume: VolumeId,
    },

    /// A network is wanted.
    NetworkCreate {
        /// Fresh id.
        network: NetworkId,
        /// Fresh id.
        task: TaskId,
        /// What was asked.
        spec: api::networks::NetworkCreate,
    },
    /// What became of it.
    NetworkObserved {
        /// The network.
        network: NetworkId,
        /// What its host saw.
        report: Report,
    },
    /// Wanted gone.
    NetworkDelete {
        /// The network.
        network: NetworkId,
        /// Fresh id.
        task: TaskId,
    },
    /// Its links are gone.
    NetworkRemoved {
        /// The network.
        network: NetworkId,
    },

    /// A VM, stopped.
    VmCreate {
        /// Fresh id.
        vm: VmId,
        /// The host that will own it.
        host: HostId,
        /// What was asked.
        spec: api::vms::VmCreate,
        /// A random unicast MAC address per NIC, in order; used where the NIC asks for none.
        macs: Vec<String>,
    },
    /// Changes a stopped VM.
    VmUpdate {
        /// The VM.
        vm: VmId,
        /// What changes.
        update: api::vms::VmUpdate,
        /// A random unicast MAC address per NIC of the update, in order.
        macs: Vec<String>,
    },
    /// Wanted up, under a new generation.
    VmStart {
        /// The VM.
        vm: VmId,
        /// Fresh id.
        task: TaskId,
    },
    /// Wanted down: the power button, and the end of its process once `deadline` is over.
    VmStop {
        /// The VM.
        vm: VmId,
        /// Fresh id.
        task: TaskId,
        /// Until then the guest may take its time.
        deadline: Millis,
    },
    /// Wanted down now.
    VmKill {
        /// The VM.
        vm: VmId,
        /// Fresh id.
        task: TaskId,
    },
    /// Wanted down as by `VmStop`, then up again.
    VmReboot {
        /// The VM.
        vm: VmId,
        /// Fresh id.
        task: TaskId,
        /// Until then the guest may take its time.
        deadline: Millis,
    },
    /// Wanted gone; only when stopped.
    VmDelete {
        /// The VM.
        vm: VmId,
        /// Fresh id.
        task: TaskId,
    },
    /// What its host observed, under the generation it was given. An older generation is void.
    VmObserved {
        /// The VM.
        vm: VmId,
        /// The generation observed.
        generation: u64,
        /// What was observed.
        report: VmReport,
    },
    /// Nothing of it is left on its host.
    VmRemoved {
        /// The VM.
        vm: VmId,
    },
}
