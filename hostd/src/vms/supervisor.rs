//! The one task that owns one VM: its child, its control socket, its phase.
//!
//! What the guest and the process do comes before what anybody asks. The task ends with the process; the entry stays
//! until the end was reported and somebody calls `forget`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::ids::VmId;
use api::vms::VmExit;
use hostd_state::Fault;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};
use vmm::control::{Event, ExitReason, Message, Operation, Outcome, State};

use super::cgroup::Cgroups;
use super::control::{Control, ControlError};
use super::jail::Watched;
use super::launch::{LaunchConfig, LaunchError, ProcessRecord, UID_FIRST, VmFolder, launch};
use super::processes::LocalProcesses;
use super::requests::{Action, answer};
use super::{HaveVm, Launcher, Opened, Phase, VmPlan, VmRequest, adopt, fault};
use crate::network::Leases;
use crate::report::chain;

/// How long a process that was asked to end may take before it is killed.
const END_GRACE: Duration = Duration::from_secs(2);
/// How long to wait before the control socket is tried again.
const RECONNECT: Duration = Duration::from_secs(1);
/// Requests that may wait for one VM. More are dropped: they are repeated by who wants them.
const REQUESTS_MAX: usize = 8;
/// The longest message taken over from a VM process, in characters.
const MESSAGE_MAX: usize = 500;

/// All VM processes of this host.
#[derive(Debug, Clone)]
pub struct Supervisors {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: LaunchConfig,
    cgroups: Option<Cgroups>,
    vms: Mutex<BTreeMap<VmId, Entry>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    process: Option<ProcessRecord>,
    uid: u32,
    generation: u64,
    phase: Phase,
    button: Option<Instant>,
    requests: mpsc::Sender<VmRequest>,
    task: Option<JoinHandle<()>>,
}

/// Why there can be no VMs on this host.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of the VMs' folders.
    #[error("could not prepare the VMs' folder")]
    Folder(#[source] io::Error),
    /// The cgroups.
    #[error("could not prepare the VMs' cgroups")]
    Cgroup(#[from] super::cgroup::CgroupError),
}

impl Supervisors {
    /// Prepares the host and adopts what an earlier daemon left. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The host lacks what VMs need.
    pub fn start(config: LaunchConfig) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.run).map_err(StartError::Folder)?;
        let cgroups = config
            .cgroup_root
            .as_deref()
            .map(Cgroups::prepare)
            .transpose()?;
        let found = adopt::scan(&config.run).map_err(StartError::Folder)?;
        let shared = Shared {
            config,
            cgroups,
            vms: Mutex::default(),
            changed: watch::Sender::new(0),
        };
        let supervisors = Self {
            shared: Arc::new(shared),
        };
        for vm in found {
            let living = vm.pidfd.is_some();
            info!(vm = %vm.process.vm, generation = vm.process.generation, living, "VM adopted");
            supervisors.add(vm.process, vm.folder, vm.pidfd);
        }
        Ok(supervisors)
    }

    /// The way into these processes for handlers.
    pub fn processes(&self, leases: Leases) -> LocalProcesses {
        LocalProcesses::new(&self.shared.config.run, leases)
    }

    /// The process id of a living VM.
    pub fn pid(&self, vm: VmId) -> Option<u32> {
        let vms = self.shared.vms();
        let entry = vms.get(&vm)?;
        match entry.phase {
            Phase::Ended(_) => None,
            Phase::Starting | Phase::Running | Phase::Paused => {
                entry.process.as_ref().map(|process| process.pid)
            }
        }
    }

    /// Lets go of all VMs without touching them: the next daemon adopts them.
    pub async fn shutdown(&self) {
        let tasks: Vec<JoinHandle<()>> = {
            let mut vms = self.shared.vms();
            vms.values_mut()
                .filter_map(|entry| entry.task.take())
                .collect()
        };
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
    }

    fn add(&self, process: ProcessRecord, folder: VmFolder, pidfd: Option<OwnedFd>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let vm = process.vm;
        let mut entry = Entry {
            uid: process.uid,
            generation: process.generation,
            phase: Phase::Starting,
            button: None,
            requests,
            task: None,
            process: Some(process),
        };
        // The lock is held while the task is made, so its first report finds the entry.
        let mut vms = self.shared.vms();
        match pidfd.map(Watched::new) {
            Some(Ok(process)) => {
                let supervisor = Supervisor {
                    shared: Arc::clone(&self.shared),
                    vm,
                    folder,
                    process,
                    requests: receiver,
                    phase: Phase::Starting,
                    end: End::NotAsked,
                };
                entry.task = Some(tokio::spawn(supervisor.run()));
            }
            Some(Err(error)) => {
                // Without a handle its end could not be seen: better ended than unseen. Never happens short of descriptors.
                warn!(%vm, error = %chain(&error), "a VM process can not be watched");
                let message = "its process could not be watched".to_owned();
                entry.phase = Phase::Ended(VmExit::VmmError { message });
            }
            None => {
                let cgroups = self.shared.cgroups.as_ref();
                entry.phase = Phase::Ended(exit(vm, &folder, cgroups, None, false));
            }
        }
        vms.insert(vm, entry);
        drop(vms);
        self.shared.tell();
    }

    /// The smallest id that no VM here has.
    fn free_uid(&self) -> u32 {
        let vms = self.shared.vms();
        let used: std::collections::BTreeSet<u32> = vms.values().map(|entry| entry.uid).collect();
        (UID_FIRST..)
            .find(|uid| !used.contains(uid))
            .unwrap_or(UID_FIRST)
    }
}

impl Shared {
    fn vms(&self) -> MutexGuard<'_, BTreeMap<VmId, Entry>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn update(&self, vm: VmId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.vms().get_mut(&vm) {
            change(entry);
        }
        self.tell();
    }
}

impl Launcher for Supervisors {
    fn list(&self) -> Vec<HaveVm> {
        let vms = self.shared.vms();
        vms.iter()
            .map(|(vm, entry)| HaveVm {
                vm: *vm,
                generation: entry.generation,
                phase: entry.phase.clone(),
                button: entry.button.map(|pressed| pressed.elapsed()),
            })
            .collect()
    }

    async fn launch(&self, plan: VmPlan, opened: Opened) -> Result<(), Fault> {
        if self.shared.vms().contains_key(&plan.vm) {
            return Err(fault(
                "still_there",
                "its last process was not cleared away yet",
                "it is tried again",
            ));
        }
        let shared = Arc::clone(&self.shared);
        let uid = self.free_uid();
        let (vm, generation) = (plan.vm, plan.generation);
        let launched = tokio::task::spawn_blocking(move || {
            launch(&shared.config, shared.cgroups.as_ref(), &plan, opened, uid)
        })
        .await
        .map_err(|error| LaunchError::Host {
            step: "start its process",
            source: io::Error::other(error),
        })??;
        info!(%vm, generation, pid = launched.process.pid, "VM process started");
        self.add(
            launched.process,
            VmFolder::of(&self.shared.config.run, vm),
            Some(launched.pidfd),
        );
        Ok(())
    }

    async fn grow_disk(&self, vm: VmId, disk: u8, size_bytes: u64) -> Result<(), Fault> {
        let phase = self.shared.vms().get(&vm).map(|entry| entry.phase.clone());
        if matches!(phase, None | Some(Phase::Ended(_))) {
            return Ok(());
        }
        let path = VmFolder::of(&self.shared.config.run, vm).control();
        let bytes = size_bytes;
        let asked = super::control::ask(&path, Operation::ResizeDisk { disk, bytes });
        asked.await.map(drop).map_err(|error| {
            fault(
                "disk_not_grown",
                crate::report::chain(&error),
                "grow the volume once more, or restart the VM: it has the new size then",
            )
        })
    }

    async fn request(&self, vm: VmId, request: VmRequest) {
        let requests = self
            .shared
            .vms()
            .get(&vm)
            .map(|entry| entry.requests.clone());
        if let Some(requests) = requests {
            // A full queue means that the same was asked often enough.
            let _ = requests.try_send(request);
        }
    }

    async fn forget(&self, vm: VmId) -> Result<(), Fault> {
        let ended = |vms: &BTreeMap<VmId, Entry>| {
            vms.get(&vm)
                .is_none_or(|entry| matches!(entry.phase, Phase::Ended(_)))
        };
        if !ended(&self.shared.vms()) {
            return Err(fault(
                "still_running",
                "its process still lives",
                "it is tried again",
            ));
        }
        let shared = Arc::clone(&self.shared);
        let cleared = tokio::task::spawn_blocking(move || {
            if let Some(cgroups) = &shared.cgroups {
                cgroups.remove(vm).map_err(|error| chain(&error))?;
            }
            VmFolder::of(&shared.config.run, vm)
                .clear()
                .map_err(|error| chain(&error))
        })
        .await
        .unwrap_or_else(|error| Err(chain(&error)));
        cleared.map_err(|cause| fault("not_cleared", cause, "it is tried again"))?;
        self.shared.vms().remove(&vm);
        self.shared.tell();
        Ok(())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

/// How far its end was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotAsked,
    /// Politely; killed at that time.
    Asked(tokio::time::Instant),
    Killed,
}

struct Supervisor {
    shared: Arc<Shared>,
    vm: VmId,
    folder: VmFolder,
    process: Watched,
    requests: mpsc::Receiver<VmRequest>,
    phase: Phase,
    end: End,
}

impl Supervisor {
    async fn run(mut self) {
        let mut control = None;
        let mut reconnect = tokio::time::Instant::now();
        loop {
            let kill_at = match self.end {
                End::Asked(at) => Some(at),
                End::NotAsked | End::Killed => None,
            };
            tokio::select! {
                biased;
                gone = self.process.ended() => {
                    if let Err(error) = gone {
                        warn!(vm = %self.vm, error = %chain(&error), "waiting for a VM process failed");
                    }
                    break;
                }
                said = next(&mut control) => match said {
                    Ok(message) => self.hear(message),
                    Err(error) => {
                        warn!(vm = %self.vm, error = %chain(&error), "the control connection of a VM is gone");
                        control = None;
                        reconnect = tokio::time::Instant::now() + RECONNECT;
                    }
                },
                () = tokio::time::sleep_until(kill_at.unwrap_or(reconnect)), if kill_at.is_some() => self.kill(),
                () = tokio::time::sleep_until(reconnect), if control.is_none() => {
                    control = Control::connect(&self.folder.control()).await.ok();
                    reconnect = tokio::time::Instant::now() + RECONNECT;
                }
                Some(request) = self.requests.recv() => self.asked(request, &mut control).await,
            }
        }
        let status = reap(self.process.as_fd());
        let asked = self.end != End::NotAsked;
        let exit = exit(
            self.vm,
            &self.folder,
            self.shared.cgroups.as_ref(),
            status,
            asked,
        );
        info!(vm = %self.vm, ?exit, "VM process ended");
        self.shared
            .update(self.vm, |entry| entry.phase = Phase::Ended(exit));
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Event(Event::Running | Event::Resumed) => self.enter(Phase::Running),
            Message::Event(Event::Paused) => self.enter(Phase::Paused),
            // Its process is about to go; that is what counts, and the status file says the same.
            Message::Event(Event::Exiting { .. }) => {}
            Message::Reply(reply) => {
                if let Outcome::Error(refusal) = reply.outcome {
                    let message = shortened(&refusal.message);
                    warn!(vm = %self.vm, %message, "a VM process refused a request");
                }
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase.clone();
            info!(vm = %self.vm, ?phase, "VM phase");
            self.shared.update(self.vm, |entry| entry.phase = phase);
        }
    }

    async fn asked(&mut self, request: VmRequest, control: &mut Option<Control>) {
        let operation = match answer(&self.phase, request) {
            Action::Nothing => return,
            Action::Press => Operation::PowerButton,
            Action::End => Operation::Stop,
        };
        let sent = match control {
            Some(control) => control.send(operation).await.is_ok(),
            None => false,
        };
        match operation {
            Operation::Stop => match self.end {
                End::NotAsked if sent => {
                    self.end = End::Asked(tokio::time::Instant::now() + END_GRACE)
                }
                End::NotAsked => self.kill(),
                // Patience was promised; the clock runs.
                End::Asked(_) | End::Killed => {}
            },
            Operation::PowerButton if sent => {
                self.shared
                    .update(self.vm, |entry| entry.button = Some(Instant::now()));
            }
            Operation::PowerButton
            | Operation::Status
            | Operation::Pause
            | Operation::Resume
            | Operation::Reset
            | Operation::ResizeDisk { .. }
            | Operation::Metrics => {}
        }
    }

    fn kill(&mut self) {
        self.end = End::Killed;
        let sent = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        info!(vm = %self.vm, ?sent, "VM process killed");
    }
}

async fn next(control: &mut Option<Control>) -> Result<Message, ControlError> {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

/// How a child of ours ended, in words. One that was adopted is somebody else's child: then nothing is known.
fn reap(pidfd: BorrowedFd<'_>) -> Option<String> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd), options).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(format!("exit status {code}")),
        (None, Some(signal)) => Some(format!("killed by signal {signal}")),
        (None, None) => None,
    }
}

/// How a VM ended, from all that is left of it: its last status, what the kernel said, whether we asked for it.
fn exit(
    vm: VmId,
    folder: &VmFolder,
    cgroups: Option<&Cgroups>,
    status: Option<String>,
    asked: bool,
) -> VmExit {
    let reason = folder
        .status()
        .filter(|status| status.state == State::Exited)
        .and_then(|status| status.exit);
    match reason {
        Some(ExitReason::GuestPowerOff) => VmExit::GuestPowerOff,
        Some(ExitReason::GuestReset) => VmExit::GuestReset,
        Some(ExitReason::TripleFault) => VmExit::TripleFault,
        Some(ExitReason::Stopped) => VmExit::Stopped,
        Some(ExitReason::Error { message }) => VmExit::VmmError {
            message: shortened(&message),
        },
        None if asked => VmExit::Stopped,
        None if cgroups.is_some_and(|cgroups| cgroups.out_of_memory(vm)) => VmExit::ProcessDied {
            status: "killed by the kernel: over its memory limit".to_owned(),
        },
        None => {
            let mut status =
                status.unwrap_or_else(|| "it ended while the daemon was away".to_owned());
            if let Some(words) = folder.last_words() {
                status = format!("{status}: {}", shortened(&words));
            }
            VmExit::ProcessDied { status }
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MESSAGE_MAX)
        .collect()
}
