//! What may be done with a VM now, and if not why: asked by `apply`, and shown by the API beside each VM.

use api::images::ImagePhase;
use api::networks::NetworkPhase;
use api::vms::{Can, VmPhase};
use api::volumes::VolumePhase;

use crate::placement;
use crate::refused::Refused;
use crate::state::State;
use crate::usage;
use crate::vms::{StopMode, VmRecord};

/// All actions with their reasons.
pub fn all(state: &State, vm: &VmRecord) -> Vec<Can> {
    let judged = [
        ("start", start(state, vm)),
        ("stop", stop(vm)),
        ("kill", kill(vm)),
        ("reboot", reboot(vm)),
        ("update", update(vm)),
        ("delete", delete(vm)),
    ];
    let can = |(action, judged): (&str, Result<(), Refused>)| Can {
        action: action.to_owned(),
        why_not: judged.err().map(|refused| refused.message),
    };
    judged.into_iter().map(can).collect()
}

/// It is down, what it needs is ready, and its host has the memory.
pub fn start(state: &State, vm: &VmRecord) -> Result<(), Refused> {
    down(vm, "start it when it is stopped")?;
    for id in usage::images(&vm.boot) {
        let image = state.image(id);
        let image = image.ok_or_else(|| Refused::not_found("image", id))?;
        let (what, hint) = match image.phase {
            ImagePhase::Ready => continue,
            ImagePhase::Uploading => ("still uploading", "wait for its task"),
            ImagePhase::Failed => ("failed", "have the VM boot from another image"),
            ImagePhase::Deleting => ("being deleted", "have the VM boot from another image"),
        };
        return Err(Refused::not_ready(
            format!("image `{}` is {what}", image.name),
            hint,
        ));
    }
    for disk in &vm.disks {
        let volume = state.volume(disk.volume);
        let volume = volume.ok_or_else(|| Refused::not_found("volume", disk.volume))?;
        let (what, hint) = match volume.phase {
            VolumePhase::Ready => continue,
            VolumePhase::Creating => ("still being made", "wait for its task"),
            VolumePhase::Failed => ("failed", "take the disk from the VM, or replace it"),
            VolumePhase::Deleting => ("being deleted", "take the disk from the VM"),
        };
        return Err(Refused::not_ready(
            format!("volume `{}` is {what}", volume.name),
            hint,
        ));
    }
    for nic in &vm.nics {
        let network = state.network(nic.network);
        let network = network.ok_or_else(|| Refused::not_found("network", nic.network))?;
        let (what, hint) = match network.phase {
            NetworkPhase::Ready => continue,
            NetworkPhase::Creating => ("still being made", "wait for its task"),
            NetworkPhase::Failed => ("failed", "look at its condition"),
            NetworkPhase::Deleting => ("being deleted", "take the NIC from the VM"),
        };
        return Err(Refused::not_ready(
            format!("network `{}` is {what}", network.name),
            hint,
        ));
    }
    placement::admit(state, vm.host, vm.memory)
}

/// It is up, and not on its way down for good.
pub fn stop(vm: &VmRecord) -> Result<(), Refused> {
    match vm.phase {
        VmPhase::Starting | VmPhase::Running | VmPhase::Paused => Ok(()),
        VmPhase::Stopping if vm.restart_after_stop => Ok(()),
        VmPhase::Stopping => Err(Refused::wrong_phase(
            format!("vm `{}` is stopping already", vm.name),
            "wait, or kill it",
        )),
        VmPhase::Stopped | VmPhase::Failed | VmPhase::Deleting => Err(not_up(vm)),
    }
}

/// It is up, and not being killed.
pub fn kill(vm: &VmRecord) -> Result<(), Refused> {
    match vm.phase {
        VmPhase::Starting | VmPhase::Running | VmPhase::Paused => Ok(()),
        VmPhase::Stopping if vm.stop == Some(StopMode::Kill) => Err(Refused::wrong_phase(
            format!("vm `{}` is being killed already", vm.name),
            "wait for its task",
        )),
        VmPhase::Stopping => Ok(()),
        VmPhase::Stopped | VmPhase::Failed | VmPhase::Deleting => Err(not_up(vm)),
    }
}

/// It runs.
pub fn reboot(vm: &VmRecord) -> Result<(), Refused> {
    match vm.phase {
        VmPhase::Running | VmPhase::Paused => Ok(()),
        VmPhase::Starting | VmPhase::Stopping => Err(Refused::wrong_phase(
            format!("vm `{}` is {}", vm.name, word(vm.phase)),
            "wait until it runs",
        )),
        VmPhase::Stopped | VmPhase::Failed | VmPhase::Deleting => Err(not_up(vm)),
    }
}

/// It is down.
pub fn update(vm: &VmRecord) -> Result<(), Refused> {
    down(vm, "stop it first")
}

/// It is down.
pub fn delete(vm: &VmRecord) -> Result<(), Refused> {
    down(vm, "stop it first")
}

fn down(vm: &VmRecord, hint: &str) -> Result<(), Refused> {
    match vm.phase {
        VmPhase::Stopped | VmPhase::Failed => Ok(()),
        VmPhase::Starting
        | VmPhase::Running
        | VmPhase::Paused
        | VmPhase::Stopping
        | VmPhase::Deleting => Err(Refused::wrong_phase(
            format!("vm `{}` is {}", vm.name, word(vm.phase)),
            hint,
        )),
    }
}

fn not_up(vm: &VmRecord) -> Refused {
    Refused::wrong_phase(
        format!("vm `{}` is {}", vm.name, word(vm.phase)),
        "start it first",
    )
}

fn word(phase: VmPhase) -> &'static str {
    match phase {
        VmPhase::Stopped => "stopped",
        VmPhase::Starting => "starting",
        VmPhase::Running => "running",
        VmPhase::Paused => "paused",
        VmPhase::Stopping => "stopping",
        VmPhase::Failed => "failed",
        VmPhase::Deleting => "being deleted",
    }
}
