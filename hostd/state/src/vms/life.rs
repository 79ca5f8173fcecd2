//! What users do with a VM.

use api::ids::{TaskId, VmId};
use api::tasks::TaskKind;
use api::units::Millis;
use api::vms::{VmIntent, VmPhase};

use crate::apply::{Outcome, Step};
use crate::can;
use crate::refused::Refused;
use crate::vms::{StopMode, VmRecord};

pub(crate) fn get(step: &Step<'_>, id: VmId) -> Result<VmRecord, Refused> {
    let vm = step.state.vm(id).cloned();
    vm.ok_or_else(|| Refused::not_found("vm", id))
}

/// Wanted up, under a new generation.
pub(crate) fn start(step: &mut Step<'_>, id: VmId, task: TaskId) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    can::start(step.state, &vm)?;
    step.task_begin(task, TaskKind::VmStart, id.0)?;
    vm.tasks.push(task);
    vm.crashes = 0;
    launch(&mut vm);
    step.put_vm(vm);
    Ok(Outcome::task(id.0, task))
}

/// Another run: a new generation, so that reports of earlier ones are void.
pub(crate) fn launch(vm: &mut VmRecord) {
    vm.intent = VmIntent::Running;
    vm.phase = VmPhase::Starting;
    vm.generation += 1;
    vm.stop = None;
    vm.restart_after_stop = false;
    vm.condition = None;
}

/// Wanted down, in the guest's own time until the deadline.
pub(crate) fn stop(
    step: &mut Step<'_>,
    id: VmId,
    task: TaskId,
    deadline: Millis,
) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    can::stop(&vm)?;
    step.task_begin(task, TaskKind::VmStop, id.0)?;
    vm.tasks.push(task);
    bring_down(&mut vm, StopMode::Graceful { deadline });
    step.put_vm(vm);
    Ok(Outcome::task(id.0, task))
}

/// Wanted down now.
pub(crate) fn kill(step: &mut Step<'_>, id: VmId, task: TaskId) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    can::kill(&vm)?;
    step.task_begin(task, TaskKind::VmKill, id.0)?;
    vm.tasks.push(task);
    bring_down(&mut vm, StopMode::Kill);
    step.put_vm(vm);
    Ok(Outcome::task(id.0, task))
}

fn bring_down(vm: &mut VmRecord, mode: StopMode) {
    vm.intent = VmIntent::Stopped;
    vm.phase = VmPhase::Stopping;
    vm.stop = Some(mode);
    vm.restart_after_stop = false;
}

/// Wanted down, then up.
pub(crate) fn reboot(
    step: &mut Step<'_>,
    id: VmId,
    task: TaskId,
    deadline: Millis,
) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    can::reboot(&vm)?;
    step.task_begin(task, TaskKind::VmReboot, id.0)?;
    vm.tasks.push(task);
    vm.phase = VmPhase::Stopping;
    vm.stop = Some(StopMode::Graceful { deadline });
    vm.restart_after_stop = true;
    step.put_vm(vm);
    Ok(Outcome::task(id.0, task))
}

/// Wanted gone.
pub(crate) fn delete(step: &mut Step<'_>, id: VmId, task: TaskId) -> Result<Outcome, Refused> {
    let mut vm = get(step, id)?;
    can::delete(&vm)?;
    step.task_begin(task, TaskKind::VmDelete, id.0)?;
    vm.tasks.push(task);
    vm.phase = VmPhase::Deleting;
    vm.condition = None;
    step.put_vm(vm);
    Ok(Outcome::task(id.0, task))
}
