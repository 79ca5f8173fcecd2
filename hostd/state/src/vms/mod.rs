//! A VM's life.
//!
//! ```text
//!                    start: generation+1                 report: running            paused
//!   create ─► Stopped ─────────────► Starting ──────────────────────► Running ◄──────────► Paused
//!              ▲  ▲                   │  │  ▲                          │  │                  │
//!              │  │      launch failed│  │  └─ guest reset, crash with  │  │                  │
//!              │  │                   ▼  │     on_crash=restart,        │  │ stop, kill, reboot
//!              │  └───────start── Failed◄┼──── host down: generation+1 ─┤  │                  │
//!              │                         │     (any other crash: Failed)│  ▼                  ▼
//!              │    ended                └───────────────────────────────► Stopping ◄────────┘
//!              ├──────────────────────────────────────────────────────────┘   │
//!              └── guest power-off, from any of the upper row                 └─ reboot: Starting, generation+1
//!
//!   Stopped, Failed ──delete──► Deleting ──removed──► gone
//! ```
//!
//! Users move it by [`life`], its host's reports by [`observed`]. A report carries the generation it is about; when
//! that is not the current one, the report is void: the VM was started again since.

pub(crate) mod spec;

pub(crate) mod life;
pub(crate) mod observed;

use api::condition::Condition;
use api::ids::{HostId, TaskId, VmId};
use api::names::Name;
use api::units::{Mib, Millis};
use api::vms::{Boot, Disk, Nic, OnCrash, VmExit, VmIntent, VmPhase};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::table::Record;

/// How a VM that is wanted down shall come down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// By its power button; its process is ended when the deadline is over.
    Graceful {
        /// Until then the guest may take its time.
        deadline: Millis,
    },
    /// At once.
    Kill,
}

/// What its host shall make true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// No process; whatever is left of an older generation ends.
    Nothing,
    /// A process of exactly this generation.
    Up {
        /// The generation.
        generation: u64,
    },
    /// The process of this generation comes down. No process there: report that it ended.
    Down {
        /// The generation.
        generation: u64,
        /// How.
        mode: StopMode,
    },
    /// Nothing may be left of it; then `VmRemoved`.
    Gone,
}

/// A VM: what is wanted and what was observed, side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Guest memory.
    pub memory: Mib,
    /// vCPUs.
    pub vcpus: u8,
    /// Machine type, kept from its creation.
    pub machine: String,
    /// Boot, resolved.
    pub boot: Boot,
    /// Disks, in guest order.
    pub disks: Vec<Disk>,
    /// NICs, in guest order; `address` is never set here.
    pub nics: Vec<Nic>,
    /// After a crash.
    pub on_crash: OnCrash,
    /// Started with its host.
    pub autostart: bool,
    /// The host that owns it.
    pub host: HostId,
    /// What is wanted.
    pub intent: VmIntent,
    /// What is.
    pub phase: VmPhase,
    /// Grows with every start.
    pub generation: u64,
    /// Set exactly while the phase is `Stopping`.
    pub stop: Option<StopMode>,
    /// Up again once it is down: a reboot. Only while `Stopping`.
    pub restart_after_stop: bool,
    /// Automatic restarts after crashes, since when they are counted.
    pub crashes: u32,
    /// The first of the counted crashes.
    pub crashes_since: Millis,
    /// How the last run ended.
    pub last_exit: Option<VmExit>,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// Tasks that wait for an observation.
    pub tasks: Vec<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for VmRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}

impl VmRecord {
    /// What its host shall make true now.
    pub fn want(&self) -> Want {
        let generation = self.generation;
        match self.phase {
            VmPhase::Stopped | VmPhase::Failed => Want::Nothing,
            VmPhase::Starting | VmPhase::Running | VmPhase::Paused => Want::Up { generation },
            VmPhase::Stopping => Want::Down {
                generation,
                mode: self.stop.unwrap_or(StopMode::Kill),
            },
            VmPhase::Deleting => Want::Gone,
        }
    }

    /// A process of it lives, or is being made.
    pub fn is_up(&self) -> bool {
        match self.phase {
            VmPhase::Starting | VmPhase::Running | VmPhase::Paused | VmPhase::Stopping => true,
            VmPhase::Stopped | VmPhase::Failed | VmPhase::Deleting => false,
        }
    }
}
