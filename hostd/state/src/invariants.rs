//! What is always true, whatever was asked in whatever order. Checked after every command in tests.

use std::collections::BTreeMap;

use api::ids::TaskId;
use api::images::{ImageFormat, ImageKind, ImagePhase};
use api::networks::NetworkPhase;
use api::tasks::TaskPhase;
use api::users::Role;
use api::vms::{VmIntent, VmPhase};
use api::volumes::VolumePhase;
use uuid::Uuid;

use crate::apply::{AUDIT_MAX, REQUESTS_MAX};
use crate::placement::HOST_RESERVE;
use crate::state::State;
use crate::tasks::{ENDED_MAX, RUNNING_MAX};
use crate::usage::{self, Usage};
use crate::vms::VmRecord;

/// Everything that is wrong, as sentences; empty when all is well.
pub fn violations(state: &State) -> Vec<String> {
    let mut wrong = Wrong(Vec::new());
    derived(state, &mut wrong);
    bounds(state, &mut wrong);
    users(state, &mut wrong);
    for vm in state.vms() {
        life(vm, &mut wrong);
        needs(state, vm, &mut wrong);
    }
    images(state, &mut wrong);
    volumes(state, &mut wrong);
    networks(state, &mut wrong);
    memory(state, &mut wrong);
    tasks(state, &mut wrong);
    wrong.0
}

struct Wrong(Vec<String>);

impl Wrong {
    fn unless(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.0.push(sentence());
        }
    }
}

fn derived(state: &State, wrong: &mut Wrong) {
    let agree = state.hosts.names_agree()
        && state.users.names_agree()
        && state.images.names_agree()
        && state.volumes.names_agree()
        && state.networks.names_agree()
        && state.vms.names_agree();
    wrong.unless(agree, || "an index of names is stale".into());
    let mut fresh = state.clone();
    fresh.derive();
    wrong.unless(state.usage == Usage::of(state), || {
        "the usage index is stale".into()
    });
    wrong.unless(state.token_hashes == fresh.token_hashes, || {
        "the token index is stale".into()
    });
    wrong.unless(state.request_keys == fresh.request_keys, || {
        "the request index is stale".into()
    });
    let nics: usize = state.vms().map(|vm| vm.nics.len()).sum();
    wrong.unless(state.usage.macs.len() == nics, || {
        "a MAC address is used twice".into()
    });
}

/// What is said of an image's format holds together.
fn images(state: &State, wrong: &mut Wrong) {
    for image in state.images() {
        let packed = image.format != ImageFormat::Raw;
        wrong.unless(!packed || image.kind == ImageKind::Disk, || {
            format!("image `{}` has a format and is no disk", image.name)
        });
        wrong.unless(packed || image.virtual_bytes.is_none(), || {
            format!("image `{}` is raw and holds a disk inside", image.name)
        });
        let known = image.virtual_bytes.is_some();
        wrong.unless(!packed || known || image.phase != ImagePhase::Ready, || {
            format!(
                "image `{}` is ready and its disk's size is not known",
                image.name
            )
        });
    }
}

fn bounds(state: &State, wrong: &mut Wrong) {
    wrong.unless(state.audit.len() <= AUDIT_MAX, || {
        "too many audit records".into()
    });
    wrong.unless(state.requests.len() <= REQUESTS_MAX, || {
        "too many answered requests".into()
    });
    let most = RUNNING_MAX + ENDED_MAX;
    wrong.unless(state.tasks.len() <= most, || "too many tasks".into());
    let vms = state.vms().map(|r| r.revision);
    let volumes = state.volumes().map(|r| r.revision);
    let networks = state.networks().map(|r| r.revision);
    let images = state.images().map(|r| r.revision);
    let hosts = state.hosts().map(|r| r.revision);
    let mut all = vms
        .chain(volumes)
        .chain(networks)
        .chain(images)
        .chain(hosts);
    wrong.unless(all.all(|r| r <= state.revision), || {
        "a record is ahead of the state".into()
    });
}

fn users(state: &State, wrong: &mut Wrong) {
    let admin = state.users().any(|user| user.role == Role::Admin);
    wrong.unless(admin || state.users.is_empty(), || {
        "users, but no administrator".into()
    });
    for token in state.tokens() {
        let user = state.user(token.user);
        wrong.unless(user.is_some_and(|user| token.role <= user.role), || {
            format!("token {} has no user of its role", token.id)
        });
    }
}

/// Phase, intent and what goes with them.
fn life(vm: &VmRecord, wrong: &mut Wrong) {
    let name = &vm.name;
    let stopping = vm.phase == VmPhase::Stopping;
    wrong.unless(stopping == vm.stop.is_some(), || {
        format!("vm `{name}`: stop mode")
    });
    wrong.unless(stopping || !vm.restart_after_stop, || {
        format!("vm `{name}`: restart")
    });
    let intent = match vm.phase {
        VmPhase::Starting | VmPhase::Running | VmPhase::Paused => VmIntent::Running,
        VmPhase::Stopping if vm.restart_after_stop => VmIntent::Running,
        VmPhase::Stopping | VmPhase::Stopped | VmPhase::Failed | VmPhase::Deleting => {
            VmIntent::Stopped
        }
    };
    wrong.unless(vm.intent == intent, || {
        format!("vm `{name}`: {:?} but {:?}", vm.intent, vm.phase)
    });
    wrong.unless(!vm.is_up() || vm.generation > 0, || {
        format!("vm `{name}`: no generation")
    });
    let failed = vm.phase == VmPhase::Failed;
    wrong.unless(!failed || vm.condition.is_some(), || {
        format!("vm `{name}`: failed, no reason")
    });
}

/// What it refers to is there, on its host, and if it is up then ready.
fn needs(state: &State, vm: &VmRecord, wrong: &mut Wrong) {
    let name = &vm.name;
    wrong.unless(state.host(vm.host).is_some(), || {
        format!("vm `{name}`: no host")
    });
    for id in usage::images(&vm.boot) {
        let image = state.image(id);
        wrong.unless(
            image.is_some_and(|i| i.host == vm.host && i.phase != ImagePhase::Deleting),
            || format!("vm `{name}`: image {id}"),
        );
    }
    for disk in &vm.disks {
        let volume = state.volume(disk.volume);
        let fits = |v: &crate::volumes::VolumeRecord| {
            v.host == vm.host
                && v.phase != VolumePhase::Deleting
                && !(vm.is_up() && v.phase == VolumePhase::Creating)
        };
        wrong.unless(volume.is_some_and(fits), || {
            format!("vm `{name}`: volume {}", disk.volume)
        });
    }
    for nic in &vm.nics {
        let network = state.network(nic.network);
        wrong.unless(
            network.is_some_and(|n| n.phase != NetworkPhase::Deleting),
            || format!("vm `{name}`: network {}", nic.network),
        );
    }
}

/// One writer, or any number of readers.
fn volumes(state: &State, wrong: &mut Wrong) {
    for (volume, users) in &state.usage.volumes {
        let writes = |vm: &VmRecord| {
            let its = vm.disks.iter().filter(|disk| disk.volume == *volume);
            its.filter(|disk| !disk.read_only).count()
        };
        let vms = users.iter().filter_map(|vm| state.vm(*vm));
        let writers: usize = vms.map(writes).sum();
        let shared = users.len() > 1;
        wrong.unless(writers == 0 || (writers == 1 && !shared), || {
            format!("volume {volume} is written by one and used by another")
        });
    }
}

fn networks(state: &State, wrong: &mut Wrong) {
    let subnets: Vec<_> = state.networks().filter_map(|n| n.subnet()).collect();
    for (at, one) in subnets.iter().enumerate() {
        let mut others = subnets.iter().skip(at + 1);
        wrong.unless(!others.any(|other| other.overlaps(*one)), || {
            "subnets overlap".into()
        });
    }
}

/// Memory that was promised when the inventory was what it is now is never more than there is.
fn memory(state: &State, wrong: &mut Wrong) {
    for host in state.hosts() {
        let promised = state.memory_promised(host);
        let most = host.inventory.memory.0.saturating_sub(HOST_RESERVE.0);
        wrong.unless(promised.0 <= most, || {
            format!("host `{}` has promised {promised} of {most} MiB", host.name)
        });
    }
}

/// A running task is owned by exactly one object, an ended one by none.
fn tasks(state: &State, wrong: &mut Wrong) {
    let mut owners: BTreeMap<TaskId, Uuid> = BTreeMap::new();
    let mut twice = false;
    let mut own = |task: TaskId, object: Uuid| twice |= owners.insert(task, object).is_some();
    for vm in state.vms() {
        vm.tasks.iter().for_each(|task| own(*task, vm.id.0));
    }
    for volume in state.volumes() {
        volume.task.iter().for_each(|task| own(*task, volume.id.0));
    }
    for image in state.images() {
        image.task.iter().for_each(|task| own(*task, image.id.0));
    }
    for network in state.networks() {
        network
            .task
            .iter()
            .for_each(|task| own(*task, network.id.0));
    }
    wrong.unless(!twice, || "a task has two owners".into());
    for task in state.tasks() {
        let running = task.phase == TaskPhase::Running;
        let owner = owners.remove(&task.id);
        let expected = running.then_some(task.object);
        wrong.unless(owner == expected, || {
            format!("task {} ({:?}) is owned by {owner:?}", task.id, task.phase)
        });
        wrong.unless(running == task.ended_at.is_none(), || {
            format!("task {}: end", task.id)
        });
    }
    wrong.unless(owners.is_empty(), || {
        "an object waits for a task that is not there".into()
    });
}
