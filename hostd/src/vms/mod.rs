//! The life of a VM on this host, and its supervisors.
//!
//! ```text
//!            launch                      guest runs           pause / resume
//!   (none) ─────────► Starting ────────────► Running ◄────────────────► Paused
//!     ▲                   │                     │                          │
//!     │ forget            └─────────┬───────────┴──────────────────────────┘
//!     └───────────────────────── Ended(exit)      process gone, for whatever reason
//! ```
//! One task per VM ([`supervisor`]) owns the child process, its control socket and this phase. The child outlives the
//! daemon; the next daemon adopts it ([`adopt`]). Nothing here knows what *should* be: that is `reconcile`.
//!
//! Read on in the order of a start: [`plan`], [`launch`], [`jail`] with [`cgroup`], then [`supervisor`].

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::time::Duration;

use api::ids::VmId;
use api::vms::VmExit;
use hostd_state::Fault;
use tokio::sync::watch;

use crate::storage::FirmwareFiles;
pub mod plan;

pub mod cgroup;
pub mod jail;
pub mod launch;

pub mod adopt;
pub mod control;
pub mod processes;
pub mod requests;
pub mod supervisor;

pub use plan::VmPlan;
pub use supervisor::Supervisors;

/// Where a VM is, on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The process builds the machine.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand.
    Paused,
    /// The process is gone.
    Ended(VmExit),
}

/// A VM this host has, launched by this daemon or by an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveVm {
    /// Which.
    pub vm: VmId,
    /// Under which generation it was launched.
    pub generation: u64,
    /// Where it is.
    pub phase: Phase,
    /// How long ago its power button was pressed last.
    pub button: Option<Duration>,
}

/// What may be asked of a living VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmRequest {
    /// Press the ACPI power button; the guest may listen.
    PowerButton,
    /// End it now.
    Kill,
}

/// What a VM process boots with, opened.
#[derive(Debug)]
pub enum OpenedBoot {
    /// A kernel.
    Kernel {
        /// The kernel.
        kernel: File,
        /// The initramfs.
        initrd: Option<File>,
    },
    /// UEFI firmware.
    Firmware(FirmwareFiles),
}

/// All that a VM process gets, opened.
#[derive(Debug)]
pub struct Opened {
    /// What it boots with.
    pub boot: OpenedBoot,
    /// The volumes, in the plan's order, locked.
    pub disks: Vec<File>,
    /// The taps, in the order of the plan's NICs.
    pub taps: Vec<OwnedFd>,
}

/// The hands that start and end VM processes. The other implementation is `fake::FakeLauncher`.
pub trait Launcher: Send + Sync + 'static {
    /// What there is now.
    fn list(&self) -> Vec<HaveVm>;

    /// Starts a VM that is not in [`Launcher::list`]. Returns once its process exists.
    fn launch(
        &self,
        plan: VmPlan,
        opened: Opened,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Asks a VM for something. What comes of it shows in [`Launcher::list`].
    fn request(&self, vm: VmId, request: VmRequest) -> impl Future<Output = ()> + Send;

    /// Tells a VM's process that the volume of a disk is longer now. One that is not there finds out when it starts.
    fn grow_disk(
        &self,
        vm: VmId,
        disk: u8,
        size_bytes: u64,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Clears away what is left of an ended VM.
    fn forget(&self, vm: VmId) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Told when [`Launcher::list`] may answer differently.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Shorthand for what the reconcilers report.
pub(crate) fn fault(code: &str, cause: impl Into<String>, next: &str) -> Fault {
    Fault {
        code: code.to_owned(),
        cause: cause.into(),
        next: next.to_owned(),
    }
}
