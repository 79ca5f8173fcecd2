//! VMs.

use api::ApiError;
use api::ids::{TaskId, VmId};
use api::units::Millis;
use api::vms::{Vm, VmCreate, VmUpdate};
use hostd_state::{Command, State, VmRecord};

use crate::auth::token::random;
use crate::http::call::{Call, Reply, object_of};
use crate::http::context::Context;
use crate::http::error::internal;

/// How long a guest may take to power off before its process is ended.
const STOP_WITHIN_MS: u64 = 60_000;

/// A VM as the API shows it, with the addresses that this host's DHCP gave out.
fn view(context: &Context, state: &State, vm: &VmRecord) -> Vm {
    let mut view = state.vm_view(vm);
    for nic in &mut view.nics {
        nic.address = context.vms.leased_address(&nic.mac);
    }
    view
}

fn target(call: &Call) -> Result<(VmId, String), ApiError> {
    let (id, object) = call.target("vm", |state, reference| {
        state.vm_ref(reference).map(|vm| vm.id.0)
    })?;
    Ok((VmId(id), object))
}

fn now(call: &Call, vm: VmId) -> Result<Vm, ApiError> {
    call.now("vm", |state| {
        state.vm(vm).map(|vm| view(&call.context, state, vm))
    })
}

pub(super) async fn vm_list(call: Call) -> Result<Reply, ApiError> {
    let context = &call.context;
    call.list(|state| state.vms().map(|vm| view(context, state, vm)).collect())
}

pub(super) async fn vm_get(call: Call) -> Result<Reply, ApiError> {
    call.show("vm", |state, reference| {
        state
            .vm_ref(reference)
            .map(|vm| view(&call.context, state, vm))
    })
}

pub(super) async fn vm_create(call: Call) -> Result<Reply, ApiError> {
    let spec: VmCreate = call.body()?;
    let macs = random_macs(spec.nics.len())?;
    let name = spec.name.to_string();
    let command = Command::VmCreate {
        vm: VmId::mint(),
        host: call.context.host()?,
        spec,
        macs,
    };
    let (revision, outcome) = call.propose(&name, command).await?;
    Reply::json(&now(&call, VmId(object_of(&outcome)?))?, revision)
}

pub(super) async fn vm_update(call: Call) -> Result<Reply, ApiError> {
    let (vm, object) = target(&call)?;
    let update: VmUpdate = call.body()?;
    let macs = random_macs(update.nics.as_ref().map_or(0, Vec::len))?;
    let (revision, _) = call
        .propose(&object, Command::VmUpdate { vm, update, macs })
        .await?;
    Reply::json(&now(&call, vm)?, revision)
}

pub(super) async fn vm_delete(call: Call) -> Result<Reply, ApiError> {
    call.remove(
        "vm",
        |state, reference| state.vm_ref(reference).map(|vm| vm.id.0),
        |id, task| Command::VmDelete { vm: VmId(id), task },
    )
    .await
}

pub(super) async fn vm_start(call: Call) -> Result<Reply, ApiError> {
    act(call, |vm, task| Command::VmStart { vm, task }).await
}

pub(super) async fn vm_stop(call: Call) -> Result<Reply, ApiError> {
    act(call, |vm, task| Command::VmStop {
        vm,
        task,
        deadline: stop_deadline(),
    })
    .await
}

pub(super) async fn vm_kill(call: Call) -> Result<Reply, ApiError> {
    act(call, |vm, task| Command::VmKill { vm, task }).await
}

pub(super) async fn vm_reboot(call: Call) -> Result<Reply, ApiError> {
    act(call, |vm, task| Command::VmReboot {
        vm,
        task,
        deadline: stop_deadline(),
    })
    .await
}

fn stop_deadline() -> Millis {
    Millis(Millis::now().0.saturating_add(STOP_WITHIN_MS))
}

async fn act(call: Call, command: impl FnOnce(VmId, TaskId) -> Command) -> Result<Reply, ApiError> {
    let (vm, object) = target(&call)?;
    call.accept("vm", &object, command(vm, TaskId::mint()), |state, id| {
        state.vm(VmId(id)).map(|vm| view(&call.context, state, vm))
    })
    .await
}

/// Locally administered, unicast (IEEE 802 §8.2), in a range of our own.
fn random_macs(count: usize) -> Result<Vec<String>, ApiError> {
    // More NICs than any VM has are refused later; they need no dice.
    (0..count.min(api::vms::DEVICES_MAX))
        .map(|_| {
            let [a, b, c] = random::<3>().map_err(|e| internal("no random numbers", &e))?;
            Ok(format!("52:4c:51:{a:02x}:{b:02x}:{c:02x}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn macs_are_local_unicast_and_differ() {
        let macs = super::random_macs(2).unwrap();
        assert_ne!(macs[0], macs[1]);
        let first = u8::from_str_radix(&macs[0][..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10);
    }
}
