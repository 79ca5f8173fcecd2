//! `lqx vm`.

use api::client::Client;
use api::endpoints::Accepted;
use api::names::Ref;
use api::vms::{BootSpec, DiskSpec, NicSpec, Vm, VmCreate};
use serde_json::json;

use super::{console, finish, limits};
use crate::failure::Failure;
use crate::options::{self, Wait};
use crate::output::{Output, word};

pub(super) async fn run(
    client: &Client,
    command: options::Vm,
    output: Output,
) -> Result<(), Failure> {
    match command {
        options::Vm::Ls => {
            let vms = client.vm_list().await?.items;
            output.list(
                &vms,
                &["name", "phase", "vcpus", "memory", "addresses", "why"],
                row,
            )
        }
        options::Vm::Show { vm } => {
            let vm = client.vm_get(&vm).await?;
            output.object(&vm, show(&vm))
        }
        options::Vm::Create(create) => self::create(client, create, output).await,
        options::Vm::Start { vm, wait } => {
            let accepted = client.vm_start(&vm).await?;
            done(client, accepted, &wait, "starting", "started", output).await
        }
        options::Vm::Stop { vm, wait } => {
            let accepted = client.vm_stop(&vm).await?;
            done(client, accepted, &wait, "stopping", "stopped", output).await
        }
        options::Vm::Kill { vm, wait } => {
            let accepted = client.vm_kill(&vm).await?;
            done(client, accepted, &wait, "killing", "killed", output).await
        }
        options::Vm::Reboot { vm, wait } => {
            let accepted = client.vm_reboot(&vm).await?;
            done(client, accepted, &wait, "rebooting", "rebooted", output).await
        }
        options::Vm::Delete { vm, wait } => {
            let removal = client.vm_delete(&vm).await?;
            finish(client, removal.task, &wait, &format!("deleting {vm}")).await?;
            output.object(&removal, format!("vm {vm} {}", past(&wait, "deleted")))
        }
        options::Vm::Console(options) => console::run(client, options).await,
    }
}

fn past<'a>(wait: &Wait, done: &'a str) -> &'a str {
    if wait.no_wait {
        "is being worked on"
    } else {
        done
    }
}

async fn done(
    client: &Client,
    accepted: Accepted<Vm>,
    wait: &Wait,
    doing: &str,
    did: &str,
    output: Output,
) -> Result<(), Failure> {
    let name = &accepted.object.name;
    finish(client, accepted.task, wait, &format!("{doing} {name}")).await?;
    let about =
        json!({ "id": accepted.object.id, "task": accepted.task, "revision": accepted.revision });
    output.object(&about, format!("vm {name} {}", past(wait, did)))
}

async fn create(client: &Client, create: options::VmCreate, output: Output) -> Result<(), Failure> {
    let wait = create.wait;
    let start = create.start;
    let request = VmCreate {
        name: create.name,
        memory: create.memory,
        vcpus: create.vcpus,
        boot: match create.kernel {
            Some(kernel) => BootSpec::Kernel {
                kernel,
                initrd: create.initrd,
                cmdline: create.cmdline,
            },
            None => BootSpec::Firmware {},
        },
        disks: create
            .disks
            .iter()
            .map(|text| disk(text))
            .collect::<Result<_, _>>()?,
        nics: create
            .networks
            .iter()
            .map(|text| nic(text))
            .collect::<Result<_, _>>()?,
        on_crash: create.on_crash.into(),
        autostart: create.autostart,
    };
    let vm = client.vm_create(&request).await?;
    if !start {
        return output.object(&vm, format!("vm {} created", vm.name));
    }
    let accepted = client.vm_start(vm.id).await?;
    finish(
        client,
        accepted.task,
        &wait,
        &format!("starting {}", vm.name),
    )
    .await?;
    output.object(
        &accepted.object,
        format!("vm {} created and {}", vm.name, past(&wait, "started")),
    )
}

fn reference(text: &str) -> Result<Ref, Failure> {
    text.parse()
        .map_err(|error| Failure::Usage(format!("`{text}`: {error}")))
}

/// `data` or `data:ro`, and limits.
fn disk(text: &str) -> Result<DiskSpec, Failure> {
    let (limits, words) = limits::of_disk(text.split(','))?;
    let [text] = words.as_slice() else {
        return Err(Failure::Usage(format!("`{text}` is not one volume")));
    };
    let (volume, read_only) = match text.strip_suffix(":ro") {
        Some(volume) => (volume, true),
        None => (*text, false),
    };
    Ok(DiskSpec {
        volume: reference(volume)?,
        read_only,
        limits,
    })
}

/// `lab` or `lab,02:00:00:00:00:01`, and limits.
fn nic(text: &str) -> Result<NicSpec, Failure> {
    let (limits, words) = limits::of_nic(text.split(','))?;
    let (network, mac) = match words.as_slice() {
        [network] => (network, None),
        [network, mac] => (network, Some((*mac).to_owned())),
        _ => return Err(Failure::Usage(format!("`{text}` is not one network"))),
    };
    Ok(NicSpec {
        network: reference(network)?,
        mac,
        limits,
    })
}

fn row(vm: &Vm) -> Vec<String> {
    let addresses: Vec<&str> = vm
        .nics
        .iter()
        .filter_map(|nic| nic.address.as_deref())
        .collect();
    let why = vm
        .condition
        .as_ref()
        .map(|condition| condition.cause.clone());
    vec![
        vm.name.to_string(),
        word(&vm.phase),
        vm.vcpus.to_string(),
        vm.memory.to_string(),
        addresses.join(" "),
        why.unwrap_or_default(),
    ]
}

fn show(vm: &Vm) -> String {
    let mut lines = vec![
        format!("name      {}", vm.name),
        format!("id        {}", vm.id),
        format!(
            "phase     {} (wanted: {})",
            word(&vm.phase),
            word(&vm.intent)
        ),
        format!("machine   {}, {} vCPU, {}", vm.machine, vm.vcpus, vm.memory),
    ];
    for disk in &vm.disks {
        let mode = if disk.read_only { " (read-only)" } else { "" };
        let limits = limits::show("", &disk.limits);
        lines.push(format!("disk      {}{mode}{limits}", disk.volume));
    }
    for nic in &vm.nics {
        let address = nic.address.as_deref().unwrap_or("no address yet");
        let limits = [
            ("receive.", nic.limits.receive),
            ("transmit.", nic.limits.transmit),
        ];
        let limits = limits.map(|(prefix, limits)| limits::show(prefix, &limits));
        lines.push(format!(
            "nic       {} on {}, {address}{}",
            nic.mac,
            nic.network,
            limits.concat()
        ));
    }
    if let Some(exit) = &vm.last_exit {
        lines.push(format!("last end  {}", word(exit)));
    }
    if let Some(condition) = &vm.condition {
        lines.push(format!(
            "condition {}: {} {}",
            condition.code, condition.cause, condition.next
        ));
    }
    for can in vm.can.iter().filter(|can| can.why_not.is_some()) {
        lines.push(format!(
            "cannot    {}: {}",
            can.action,
            can.why_not.as_deref().unwrap_or_default()
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use api::condition::Condition;
    use api::ids::{HostId, ImageId, NetworkId, VmId, VolumeId};
    use api::limits::{NicLimits, RateLimits};
    use api::units::{Mib, Millis};
    use api::vms::{Boot, Can, Disk, Nic, OnCrash, VmExit, VmIntent, VmPhase};
    use expect_test::expect;

    use super::*;

    fn web() -> Vm {
        let id = uuid::Uuid::from_u128(7);
        Vm {
            id: VmId(id),
            name: "web".parse().unwrap(),
            memory: Mib(256),
            vcpus: 2,
            machine: "q35-lqx-1".to_owned(),
            boot: Boot::Kernel {
                kernel: ImageId(id),
                initrd: None,
                cmdline: String::new(),
            },
            disks: vec![Disk {
                volume: VolumeId(id),
                read_only: true,
                limits: RateLimits {
                    operations_per_second: Some(500),
                    ..RateLimits::default()
                },
            }],
            nics: vec![Nic {
                network: NetworkId(id),
                mac: "02:00:00:00:00:01".to_owned(),
                address: Some("10.77.0.2".to_owned()),
                limits: NicLimits::default(),
            }],
            on_crash: OnCrash::Stay,
            autostart: false,
            host: HostId(id),
            intent: VmIntent::Running,
            phase: VmPhase::Failed,
            generation: 3,
            last_exit: Some(VmExit::ProcessDied {
                status: "signal 9".to_owned(),
            }),
            condition: Some(Condition {
                code: "process_died".to_owned(),
                cause: "Its process was killed.".to_owned(),
                since: Millis(0),
                next: "Start it again.".to_owned(),
            }),
            can: vec![Can {
                action: "stop".to_owned(),
                why_not: Some("it does not run".to_owned()),
            }],
            created_at: Millis(0),
            revision: 9,
        }
    }

    #[test]
    fn a_vm_that_is_not_well_says_why() {
        expect![[r#"
            name      web
            id        00000000-0000-0000-0000-000000000007
            phase     failed (wanted: running)
            machine   q35-lqx-1, 2 vCPU, 256 MiB
            disk      00000000-0000-0000-0000-000000000007 (read-only), operations_per_second=500
            nic       02:00:00:00:00:01 on 00000000-0000-0000-0000-000000000007, 10.77.0.2
            last end  process_died
            condition process_died: Its process was killed. Start it again.
            cannot    stop: it does not run"#]]
        .assert_eq(&show(&web()));
        assert_eq!(
            row(&web()),
            [
                "web",
                "failed",
                "2",
                "256 MiB",
                "10.77.0.2",
                "Its process was killed."
            ]
        );
    }

    #[test]
    fn disks_and_nics_are_read() {
        assert!(disk("data:ro").unwrap().read_only);
        assert!(!disk("data").unwrap().read_only);
        assert_eq!(disk("Data").unwrap_err().status(), 2);
        assert_eq!(
            nic("lab,02:00:00:00:00:01").unwrap().mac.as_deref(),
            Some("02:00:00:00:00:01")
        );
        assert_eq!(nic("lab").unwrap().mac, None);
        let limited = disk("data:ro,operations_per_second=500").unwrap();
        assert!(limited.read_only);
        assert_eq!(limited.limits.operations_per_second, Some(500));
        let limited = nic("lab,02:00:00:00:00:01,receive.bytes_per_second=1M").unwrap();
        assert_eq!(limited.limits.receive.bytes_per_second, Some(1 << 20));
        assert!(limited.mac.is_some());
        assert_eq!(disk("data,other").unwrap_err().status(), 2);
        assert_eq!(nic("lab,a,b").unwrap_err().status(), 2);
    }
}
