//! What a VM's host reports.

use api::ErrorCode;
use api::events::{ChangeOp, Noun};
use api::ids::{HostId, VmId};
use api::tasks::TaskKind;
use api::units::Millis;
use api::vms::{OnCrash, VmExit, VmIntent, VmPhase};
use api::{ApiError, condition::Condition};

use crate::apply::{Outcome, Step};
use crate::can;
use crate::command::{Fault, VmReport};
use crate::images::not_wanted_gone;
use crate::refused::Refused;
use crate::vms::life::{get, launch};
use crate::vms::{VmRecord, life};

/// More automatic restarts than this within [`CRASH_WINDOW`]: it stays down.
pub const CRASHES_MAX: u32 = 5;
/// The time in which crashes are counted together.
pub const CRASH_WINDOW: Millis = Millis(10 * 60 * 1000);

/// A report about one generation. An older generation's, or one that cannot be true any more, is void.
pub(crate) fn observed(
    step: &mut Step<'_>,
    id: VmId,
    generation: u64,
    report: &VmReport,
) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    let void = Ok(Outcome::object(id.0));
    if generation < vm.generation {
        return void;
    }
    if generation > vm.generation {
        return Err(Refused::invalid(
            format!("vm `{}` never had generation {generation}", vm.name),
            "report the generation that was given",
        ));
    }
    if !vm.is_up() {
        return void;
    }
    match (vm.phase, report) {
        (VmPhase::Starting | VmPhase::Paused, VmReport::Running) => {
            vm.phase = VmPhase::Running;
            came_up(step, &mut vm);
        }
        (VmPhase::Starting | VmPhase::Running, VmReport::Paused) => {
            vm.phase = VmPhase::Paused;
            came_up(step, &mut vm);
        }
        (_, VmReport::Ended(exit)) => ended(step, &mut vm, exit),
        (VmPhase::Starting, VmReport::LaunchFailed(fault)) => failed(step, &mut vm, fault),
        (VmPhase::Stopping, VmReport::LaunchFailed(_)) => came_down(step, &mut vm),
        (_, VmReport::Starting | VmReport::Running | VmReport::Paused)
        | (_, VmReport::LaunchFailed(_)) => return void,
    }
    step.put_vm(vm);
    void
}

/// Its vCPUs exist: who waited for that is told.
fn came_up(step: &mut Step<'_>, vm: &mut VmRecord) {
    vm.condition = None;
    settle(step, vm, |kind| match kind {
        TaskKind::VmStart | TaskKind::VmReboot => Some(Ok(())),
        _ => None,
    });
}

/// Its process is gone. What that means depends on what was wanted.
fn ended(step: &mut Step<'_>, vm: &mut VmRecord, exit: &VmExit) {
    vm.last_exit = Some(exit.clone());
    if vm.phase == VmPhase::Stopping {
        return came_down(step, vm);
    }
    match exit {
        VmExit::GuestPowerOff | VmExit::Stopped => came_down(step, vm),
        VmExit::GuestReset => launch(vm),
        VmExit::HostDown => back_up(step, vm),
        VmExit::TripleFault | VmExit::ProcessDied { .. } | VmExit::VmmError { .. } => {
            crashed(step, vm, exit);
        }
    }
}

/// It is down and nothing is wrong with that; or it was a reboot, and it comes up again.
fn came_down(step: &mut Step<'_>, vm: &mut VmRecord) {
    if vm.restart_after_stop {
        return launch(vm);
    }
    vm.phase = VmPhase::Stopped;
    vm.intent = VmIntent::Stopped;
    vm.stop = None;
    vm.condition = None;
    let name = vm.name.clone();
    settle(step, vm, |kind| match kind {
        TaskKind::VmStop | TaskKind::VmKill => Some(Ok(())),
        TaskKind::VmStart | TaskKind::VmReboot => Some(Err(ApiError::new(
            ErrorCode::WrongPhase,
            format!("vm `{name}` went down before this was done"),
            "start it again",
        ))),
        _ => None,
    });
}

fn crashed(step: &mut Step<'_>, vm: &mut VmRecord, exit: &VmExit) {
    let (code, cause) = match exit {
        VmExit::TripleFault => ("guest_triple_fault", "the guest's CPU shut down".to_owned()),
        VmExit::ProcessDied { status } => {
            ("process_died", format!("the VM's process died: {status}"))
        }
        VmExit::VmmError { message } => {
            ("vmm_error", format!("the VM's process gave up: {message}"))
        }
        other => ("ended", format!("it ended: {other:?}")),
    };
    let fault = |next: &str| Fault {
        code: code.to_owned(),
        cause: cause.clone(),
        next: next.to_owned(),
    };
    if vm.on_crash == OnCrash::Stay {
        return failed(
            step,
            vm,
            &fault("it stays down; look at its console, then start it"),
        );
    }
    let apart = step.at.0.saturating_sub(vm.crashes_since.0) > CRASH_WINDOW.0;
    if vm.crashes == 0 || apart {
        vm.crashes = 0;
        vm.crashes_since = step.at;
    }
    vm.crashes += 1;
    if vm.crashes > CRASHES_MAX {
        return failed(
            step,
            vm,
            &fault(
                "it crashed too often to be restarted again; look at its console, then start it",
            ),
        );
    }
    launch(vm);
}

/// It did not come up, or did not stay up.
fn failed(step: &mut Step<'_>, vm: &mut VmRecord, fault: &Fault) {
    vm.phase = VmPhase::Failed;
    vm.intent = VmIntent::Stopped;
    vm.stop = None;
    vm.restart_after_stop = false;
    vm.condition = Some(fault.condition(step.at));
    settle(step, vm, |kind| match kind {
        TaskKind::VmStop | TaskKind::VmKill => Some(Ok(())),
        TaskKind::VmStart | TaskKind::VmReboot => Some(Err(fault.error())),
        _ => None,
    });
}

/// Its host came up again and it is wanted up: if everything it needs is still there.
fn back_up(step: &mut Step<'_>, vm: &mut VmRecord) {
    // Down first, in the tables too: what was promised to it must not speak against it.
    vm.phase = VmPhase::Stopped;
    vm.intent = VmIntent::Stopped;
    vm.stop = None;
    vm.restart_after_stop = false;
    step.put_vm(vm.clone());
    match can::start(step.state, vm) {
        Ok(()) => launch(vm),
        Err(refused) => {
            let fault = Fault {
                code: crate::refused::code_name(refused.code),
                cause: format!("its host restarted, and {}", refused.message),
                next: refused.hint,
            };
            failed(step, vm, &fault);
        }
    }
}

/// All VMs of a host whose kernel started anew, in the order of their ids: those that were up first, then those with
/// autostart, so that autostart does not take the memory of what was running.
pub(crate) fn host_booted(step: &mut Step<'_>, host: HostId) {
    let of_host = |vm: &&VmRecord| vm.host == host;
    let was_up: Vec<VmId> = step
        .state
        .vms()
        .filter(of_host)
        .filter(|vm| vm.is_up())
        .map(|vm| vm.id)
        .collect();
    let autostart: Vec<VmId> = step
        .state
        .vms()
        .filter(of_host)
        .filter(|vm| vm.autostart && matches!(vm.phase, VmPhase::Stopped | VmPhase::Failed))
        .map(|vm| vm.id)
        .collect();
    // All of them are down before any of them comes up.
    let mut wanted = Vec::new();
    for id in was_up {
        let Ok(mut vm) = life::get(step, id) else {
            continue;
        };
        vm.last_exit = Some(VmExit::HostDown);
        if vm.intent == VmIntent::Running || vm.autostart {
            wanted.push(id);
        }
        if vm.intent == VmIntent::Stopped {
            came_down(step, &mut vm);
        } else {
            vm.phase = VmPhase::Stopped;
            vm.intent = VmIntent::Stopped;
            vm.stop = None;
            vm.restart_after_stop = false;
            vm.condition = Some(Condition {
                code: "host_down".to_owned(),
                cause: "its host went down under it".to_owned(),
                since: step.at,
                next: "it is started again".to_owned(),
            });
        }
        step.put_vm(vm);
    }
    for id in wanted.into_iter().chain(autostart) {
        if let Ok(mut vm) = life::get(step, id) {
            back_up(step, &mut vm);
            step.put_vm(vm);
        }
    }
}

/// Nothing of it is left.
pub(crate) fn removed(step: &mut Step<'_>, id: VmId) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    if vm.phase != VmPhase::Deleting {
        return Err(not_wanted_gone("vm", &vm.name));
    }
    settle(step, &mut vm, |_| Some(Ok(())));
    step.remove_vm(id);
    step.changed(Noun::Vm, id.0, ChangeOp::Deleted);
    Ok(Outcome::object(id.0))
}

/// Ends those of the VM's tasks that `judge` has an answer for.
fn settle(
    step: &mut Step<'_>,
    vm: &mut VmRecord,
    judge: impl Fn(TaskKind) -> Option<Result<(), ApiError>>,
) {
    let tasks = std::mem::take(&mut vm.tasks);
    for id in tasks {
        let Some(kind) = step.state.task(id).map(|task| task.kind) else {
            continue;
        };
        match judge(kind) {
            None => vm.tasks.push(id),
            Some(Ok(())) => step.task_succeeded(id),
            Some(Err(error)) => step.task_failed(id, error),
        }
    }
}
