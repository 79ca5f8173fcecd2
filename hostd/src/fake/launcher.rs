//! VM processes that are entries in a table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use api::ids::VmId;
use api::vms::VmExit;
use hostd_state::Fault;
use tokio::sync::watch;

use super::lock;
use crate::vms::{HaveVm, Launcher, Opened, Phase, VmPlan, VmRequest, fault};

/// Launches nothing. Its guests run at once, obey the power button and can be made to do anything by a test.
#[derive(Debug, Clone)]
pub struct FakeLauncher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    vms: BTreeMap<VmId, Process>,
    launches: u64,
    grown: Vec<(VmId, u8, u64)>,
    failing: Option<Fault>,
    deaf: bool,
}

#[derive(Debug)]
struct Process {
    generation: u64,
    phase: Phase,
    button: Option<Instant>,
    // Held like a process holds them.
    _opened: Option<Opened>,
}

impl Default for FakeLauncher {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                table: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        }
    }
}

impl FakeLauncher {
    /// How many processes were ever started.
    pub fn launches(&self) -> u64 {
        lock(&self.shared.table).launches
    }

    /// Which disks of which processes were told to grow.
    pub fn grown(&self) -> Vec<(VmId, u8, u64)> {
        lock(&self.shared.table).grown.clone()
    }

    /// From now on launching and growing fail so, or works again.
    pub fn fail(&self, fault: Option<Fault>) {
        lock(&self.shared.table).failing = fault;
    }

    /// From now on guests do not listen to their power button, or do again.
    pub fn deaf(&self, deaf: bool) {
        lock(&self.shared.table).deaf = deaf;
    }

    /// The guest or its process does something.
    pub fn becomes(&self, vm: VmId, phase: Phase) {
        if let Some(process) = lock(&self.shared.table).vms.get_mut(&vm) {
            process.phase = phase;
        }
        self.tell();
    }

    /// A process that an earlier daemon left.
    pub fn place(&self, vm: VmId, generation: u64, phase: Phase) {
        let process = Process {
            generation,
            phase,
            button: None,
            _opened: None,
        };
        lock(&self.shared.table).vms.insert(vm, process);
        self.tell();
    }

    fn tell(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

impl Launcher for FakeLauncher {
    fn list(&self) -> Vec<HaveVm> {
        let table = lock(&self.shared.table);
        let have = table.vms.iter().map(|(vm, process)| HaveVm {
            vm: *vm,
            generation: process.generation,
            phase: process.phase.clone(),
            button: process.button.map(|pressed| pressed.elapsed()),
        });
        have.collect()
    }

    async fn launch(&self, plan: VmPlan, opened: Opened) -> Result<(), Fault> {
        {
            let mut table = lock(&self.shared.table);
            if let Some(fault) = &table.failing {
                return Err(fault.clone());
            }
            if table.vms.contains_key(&plan.vm) {
                return Err(fault(
                    "still_there",
                    "its last process was not cleared away yet",
                    "it is tried again",
                ));
            }
            table.launches += 1;
            let process = Process {
                generation: plan.generation,
                phase: Phase::Running,
                button: None,
                _opened: Some(opened),
            };
            table.vms.insert(plan.vm, process);
        }
        self.tell();
        Ok(())
    }

    async fn grow_disk(&self, vm: VmId, disk: u8, size_bytes: u64) -> Result<(), Fault> {
        let mut table = lock(&self.shared.table);
        match table.vms.get(&vm).map(|process| &process.phase) {
            None | Some(Phase::Ended(_)) => return Ok(()),
            Some(Phase::Starting | Phase::Running | Phase::Paused) => {}
        }
        if let Some(fault) = &table.failing {
            return Err(fault.clone());
        }
        table.grown.push((vm, disk, size_bytes));
        Ok(())
    }

    async fn request(&self, vm: VmId, request: VmRequest) {
        {
            let mut table = lock(&self.shared.table);
            let deaf = table.deaf;
            let Some(process) = table.vms.get_mut(&vm) else {
                return;
            };
            if matches!(process.phase, Phase::Ended(_)) {
                return;
            }
            match request {
                VmRequest::PowerButton if deaf => process.button = Some(Instant::now()),
                VmRequest::PowerButton => process.phase = Phase::Ended(VmExit::GuestPowerOff),
                VmRequest::Kill => process.phase = Phase::Ended(VmExit::Stopped),
            }
        }
        self.tell();
    }

    async fn forget(&self, vm: VmId) -> Result<(), Fault> {
        {
            let mut table = lock(&self.shared.table);
            match table.vms.get(&vm).map(|process| &process.phase) {
                None | Some(Phase::Ended(_)) => drop(table.vms.remove(&vm)),
                Some(Phase::Starting | Phase::Running | Phase::Paused) => {
                    return Err(fault(
                        "still_running",
                        "its process still lives",
                        "it is tried again",
                    ));
                }
            }
        }
        self.tell();
        Ok(())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}
