//! What a VM shall be: creation and update, checked against limits and against what else there is.

use std::collections::BTreeSet;

use api::ErrorCode;
use api::ids::{HostId, VmId};
use api::images::{ImageKind, ImagePhase};
use api::limits::RateLimits;
use api::names::Ref;
use api::networks::NetworkPhase;
use api::units::{Mib, Millis};
use api::vms::{
    Boot, BootSpec, CMDLINE_LEN_MAX, DEVICES_MAX, Disk, DiskSpec, MACHINE_TYPE, MEMORY_MAX,
    MEMORY_MIN, Nic, NicSpec, VCPUS_MAX, VmCreate, VmIntent, VmPhase, VmUpdate,
};
use api::volumes::VolumePhase;

use crate::apply::{Outcome, Step};
use crate::can;
use crate::images::ImageRecord;
use crate::refused::Refused;
use crate::state::State;
use crate::vms::{VmRecord, life};

/// A VM, stopped.
pub(crate) fn create(
    step: &mut Step<'_>,
    id: VmId,
    host: HostId,
    spec: &VmCreate,
    macs: &[String],
) -> Result<Outcome, Refused> {
    step.host_known(host)?;
    Step::fresh(&step.state.vms, "vm", id.0, &spec.name)?;
    check_memory(spec.memory)?;
    check_vcpus(spec.vcpus)?;
    let vm = VmRecord {
        id,
        name: spec.name.clone(),
        memory: spec.memory,
        vcpus: spec.vcpus,
        machine: MACHINE_TYPE.to_owned(),
        boot: boot(step.state, host, &spec.boot)?,
        disks: disks(step.state, host, id, &spec.disks)?,
        nics: nics(step.state, id, &spec.nics, macs)?,
        on_crash: spec.on_crash,
        autostart: spec.autostart,
        host,
        intent: VmIntent::Stopped,
        phase: VmPhase::Stopped,
        generation: 0,
        stop: None,
        restart_after_stop: false,
        crashes: 0,
        crashes_since: Millis(0),
        last_exit: None,
        condition: None,
        tasks: Vec::new(),
        created_at: step.at,
        revision: 0,
    };
    step.put_vm(vm);
    Ok(Outcome::object(id.0))
}

/// Changes a stopped VM; what is absent stays.
pub(crate) fn update(
    step: &mut Step<'_>,
    id: VmId,
    update: &VmUpdate,
    macs: &[String],
) -> Result<Outcome, Refused> {
    let mut vm = life::get(step, id)?;
    Refused::if_changed("vm", &vm.name, update.revision, vm.revision)?;
    can::update(&vm)?;
    if let Some(name) = &update.name
        && *name != vm.name
    {
        if step.state.vms.named(name).is_some() {
            return Err(Refused::exists("vm", name));
        }
        vm.name = name.clone();
    }
    if let Some(memory) = update.memory {
        check_memory(memory)?;
        vm.memory = memory;
    }
    if let Some(vcpus) = update.vcpus {
        check_vcpus(vcpus)?;
        vm.vcpus = vcpus;
    }
    if let Some(spec) = &update.boot {
        vm.boot = boot(step.state, vm.host, spec)?;
    }
    if let Some(specs) = &update.disks {
        vm.disks = disks(step.state, vm.host, id, specs)?;
    }
    if let Some(specs) = &update.nics {
        vm.nics = nics(step.state, id, specs, macs)?;
    }
    vm.on_crash = update.on_crash.unwrap_or(vm.on_crash);
    vm.autostart = update.autostart.unwrap_or(vm.autostart);
    step.put_vm(vm);
    Ok(Outcome::object(id.0))
}

fn check_memory(memory: Mib) -> Result<(), Refused> {
    if (MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
        return Ok(());
    }
    Err(Refused::invalid(
        format!("a vm has {MEMORY_MIN} to {MEMORY_MAX} of memory, not {memory}"),
        "choose another amount",
    ))
}

fn check_vcpus(vcpus: u8) -> Result<(), Refused> {
    if (1..=VCPUS_MAX).contains(&vcpus) {
        return Ok(());
    }
    Err(Refused::invalid(
        format!("a vm has 1 to {VCPUS_MAX} vCPUs, not {vcpus}"),
        "choose another number",
    ))
}

fn boot(state: &State, host: HostId, spec: &BootSpec) -> Result<Boot, Refused> {
    let BootSpec::Kernel {
        kernel,
        initrd,
        cmdline,
    } = spec
    else {
        return Ok(Boot::Firmware {});
    };
    if cmdline.len() > CMDLINE_LEN_MAX {
        return Err(Refused::invalid(
            format!("the kernel's command line is longer than {CMDLINE_LEN_MAX} bytes"),
            "shorten it; a guest can read more from its disk",
        ));
    }
    if cmdline.chars().any(char::is_control) {
        return Err(Refused::invalid(
            "the kernel's command line has a control character",
            "separate its words by spaces",
        ));
    }
    let initrd = initrd.as_ref();
    Ok(Boot::Kernel {
        kernel: image(state, host, kernel, ImageKind::Kernel)?.id,
        initrd: initrd
            .map(|initrd| image(state, host, initrd, ImageKind::Initrd).map(|image| image.id))
            .transpose()?,
        cmdline: cmdline.clone(),
    })
}

/// An image of this kind on this host; it may still be uploading.
fn image<'s>(
    state: &'s State,
    host: HostId,
    reference: &Ref,
    kind: ImageKind,
) -> Result<&'s ImageRecord, Refused> {
    let image = state.image_ref(reference);
    let image = image.ok_or_else(|| Refused::not_found("image", reference))?;
    let name = &image.name;
    if image.kind != kind {
        let word = match kind {
            ImageKind::Kernel => "a kernel",
            ImageKind::Initrd => "an initrd",
            ImageKind::Disk => "a disk",
        };
        return Err(Refused::invalid(
            format!("image `{name}` is not {word}"),
            "choose an image of the right kind",
        ));
    }
    if image.host != host {
        return Err(Refused::invalid(
            format!("image `{name}` is on another host"),
            "upload it to the VM's host",
        ));
    }
    match image.phase {
        ImagePhase::Uploading | ImagePhase::Ready => Ok(image),
        ImagePhase::Failed => Err(Refused::not_ready(
            format!("image `{name}` has failed"),
            "delete it and upload it again",
        )),
        ImagePhase::Deleting => Err(Refused::not_ready(
            format!("image `{name}` is being deleted"),
            "choose another image",
        )),
    }
}

fn disks(state: &State, host: HostId, vm: VmId, specs: &[DiskSpec]) -> Result<Vec<Disk>, Refused> {
    check_count("disks", specs.len())?;
    let mut seen = BTreeSet::new();
    let mut disks = Vec::with_capacity(specs.len());
    for spec in specs {
        let volume = state.volume_ref(&spec.volume);
        let volume = volume.ok_or_else(|| Refused::not_found("volume", &spec.volume))?;
        let name = &volume.name;
        if !seen.insert(volume.id) {
            return Err(Refused::invalid(
                format!("volume `{name}` is named twice"),
                "give each disk its own volume",
            ));
        }
        if volume.host != host {
            return Err(Refused::invalid(
                format!("volume `{name}` is on another host"),
                "choose a volume of the VM's host",
            ));
        }
        match volume.phase {
            VolumePhase::Creating | VolumePhase::Ready => {}
            VolumePhase::Failed => {
                return Err(Refused::not_ready(
                    format!("volume `{name}` has failed"),
                    "delete it and create it again",
                ));
            }
            VolumePhase::Deleting => {
                return Err(Refused::not_ready(
                    format!("volume `{name}` is being deleted"),
                    "choose another volume",
                ));
            }
        }
        check_limits(&format!("volume `{name}`"), &spec.limits)?;
        let disk = Disk {
            volume: volume.id,
            read_only: spec.read_only,
            limits: spec.limits,
        };
        if let Some(other) = rival(state, vm, &disk) {
            return Err(Refused::in_use(
                format!("volume `{name}` belongs to vm `{}`", other.name),
                "a volume has one VM that writes to it, or several that only read",
            ));
        }
        disks.push(disk);
    }
    Ok(disks)
}

/// Another VM that has the volume, and cannot have it together with this one.
fn rival<'s>(state: &'s State, vm: VmId, disk: &Disk) -> Option<&'s VmRecord> {
    let users = state.usage.volumes.get(&disk.volume)?;
    let others = users.iter().filter(|other| **other != vm);
    let mut others = others.filter_map(|other| state.vm(*other));
    others.find(|other| {
        let its = other.disks.iter().find(|its| its.volume == disk.volume);
        !disk.read_only || its.is_some_and(|its| !its.read_only)
    })
}

fn nics(state: &State, vm: VmId, specs: &[NicSpec], macs: &[String]) -> Result<Vec<Nic>, Refused> {
    check_count("NICs", specs.len())?;
    let mut seen = BTreeSet::new();
    let mut nics = Vec::with_capacity(specs.len());
    for (at, spec) in specs.iter().enumerate() {
        let network = state.network_ref(&spec.network);
        let network = network.ok_or_else(|| Refused::not_found("network", &spec.network))?;
        if network.phase == NetworkPhase::Deleting {
            return Err(Refused::not_ready(
                format!("network `{}` is being deleted", network.name),
                "choose another network",
            ));
        }
        let asked = spec.mac.as_ref().or_else(|| macs.get(at));
        let asked = asked.ok_or_else(|| {
            Refused::new(
                ErrorCode::Internal,
                format!("no MAC address was minted for NIC {at}"),
                "report this",
            )
        })?;
        let mac = mac(asked)?;
        let taken = state.usage.macs.get(&mac).is_some_and(|user| *user != vm);
        if taken || !seen.insert(mac.clone()) {
            return Err(Refused::new(
                ErrorCode::Exists,
                format!("MAC address {mac} is taken"),
                "choose another, or none and get one",
            ));
        }
        check_limits(&format!("NIC {at}, receive"), &spec.limits.receive)?;
        check_limits(&format!("NIC {at}, transmit"), &spec.limits.transmit)?;
        nics.push(Nic {
            network: network.id,
            mac,
            address: None,
            limits: spec.limits,
        });
    }
    Ok(nics)
}

fn check_limits(what: &str, limits: &RateLimits) -> Result<(), Refused> {
    limits.fault().map_or(Ok(()), |fault| {
        Err(Refused::invalid(
            format!("the limits of {what}: {fault}"),
            "leave out what is not to be limited",
        ))
    })
}

/// A unicast MAC address, in lower case.
fn mac(text: &str) -> Result<String, Refused> {
    let bad = |why: &str| {
        Refused::invalid(
            format!(
                "`{}` is not a MAC address for a NIC: {why}",
                text.escape_debug()
            ),
            "write for instance `52:54:00:12:34:56`",
        )
    };
    let parts: Vec<&str> = text.split(':').collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(hex) {
        return Err(bad("it has not six pairs of hexadecimal digits"));
    }
    let first = parts
        .first()
        .and_then(|part| u8::from_str_radix(part, 16).ok());
    if first.is_none_or(|byte| byte & 1 == 1) {
        return Err(bad("it is a group address"));
    }
    if parts.iter().all(|part| *part == "00") {
        return Err(bad("it is all zero"));
    }
    Ok(text.to_ascii_lowercase())
}

fn check_count(what: &str, count: usize) -> Result<(), Refused> {
    if count <= DEVICES_MAX {
        return Ok(());
    }
    Err(Refused::invalid(
        format!("a vm has at most {DEVICES_MAX} {what}, not {count}"),
        "leave some out",
    ))
}
