//! Deaths and power cuts: what must live on does, and nothing that was acknowledged is lost.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use api::ErrorCode;
use api::client::{Client, ClientError};
use api::ids::VmId;
use api::units::Mib;
use api::vms::{Vm, VmExit, VmPhase};
use api::volumes::{VolumeCreate, VolumePhase};
use testbed::expect::{eventually, secs};
use testbed::guest::{GuestConsole, demonstration, demonstration_with_disk, phase, start};
use testbed::lab::{Appliance, lab_test};

/// The process id of the daemon, and of each VM's process.
fn daemon(appliance: &mut Appliance) -> Result<i32> {
    let found = appliance.agent()?.processes_with("hostd daemon")?;
    ensure!(found.len() == 1, "daemons: {found:?}");
    Ok(found[0].pid)
}

fn vm_processes(appliance: &mut Appliance) -> Result<Vec<i32>> {
    let found = appliance.agent()?.processes_with("hostd vmm")?;
    Ok(found.iter().map(|process| process.pid).collect())
}

/// The daemon is killed: init starts it again, the guest has noticed nothing, and the new daemon takes it over.
#[test]
fn a_guest_outlives_its_daemon() -> Result<()> {
    lab_test("a_guest_outlives_its_daemon", async |lab| {
        let appliance = lab.prepared().await?;
        let api = appliance.api.clone();
        let vm = start(&api, &demonstration_with_disk(&api, "web").await?).await?;
        let mut console = GuestConsole::open(&api, vm.id).await?;
        console.ready(secs(180)).await?;
        console.run("echo alive >/tmp/mark", secs(30)).await?;
        let before = vm_processes(appliance)?;
        ensure!(!before.is_empty(), "no vm process is to be seen");
        let old = daemon(appliance)?;

        appliance.agent()?.kill(old)?;
        eventually("init starts the daemon again", secs(60), async || {
            Ok(daemon(appliance).ok().filter(|new| *new != old))
        })
        .await?;
        appliance.ready(secs(120)).await?;

        ensure!(
            vm_processes(appliance)? == before,
            "the vm's process is another one"
        );
        let adopted = phase(&api, vm.id, VmPhase::Running, secs(60)).await?;
        ensure!(adopted.generation == vm.generation, "it was started anew");
        // The same guest, by the same kernel's memory; and its console works again, scrollback and all.
        let mut console = GuestConsole::open(&api, vm.id).await?;
        console
            .ready(secs(30))
            .await
            .context("the scrollback from power-on")?;
        let said = console.run("cat /tmp/mark", secs(30)).await?;
        ensure!(said == "alive", "{said:?}");
        // The new daemon is in charge of it.
        let stop = api.vm_stop(vm.id).await?;
        api.task_wait(stop.task, secs(120)).await?;
        phase(&api, vm.id, VmPhase::Stopped, secs(10)).await?;
        Ok(())
    })
}

/// A VM's process is killed: that VM says so, its neighbour has noticed nothing, and the daemon neither.
#[test]
fn a_vm_process_dies_alone() -> Result<()> {
    lab_test("a_vm_process_dies_alone", async |lab| {
        let appliance = lab.prepared().await?;
        let api = appliance.api.clone();
        let victim = start(&api, &demonstration("victim")?).await?;
        let processes = vm_processes(appliance)?;
        let neighbour = start(&api, &demonstration("neighbour")?).await?;
        let mut console = GuestConsole::open(&api, neighbour.id).await?;
        console.ready(secs(240)).await?;
        let hostd = daemon(appliance)?;

        for process in processes {
            appliance.agent()?.kill(process)?;
        }
        let dead = phase(&api, victim.id, VmPhase::Failed, secs(60)).await?;
        ensure!(
            matches!(dead.last_exit, Some(VmExit::ProcessDied { .. })),
            "{:?}",
            dead.last_exit
        );
        let condition = dead.condition.context("it does not say why")?;
        ensure!(
            !condition.cause.is_empty() && !condition.next.is_empty(),
            "{condition:?}"
        );

        let said = console.run("echo still here", secs(30)).await?;
        ensure!(said == "still here", "{said:?}");
        ensure!(api.vm_get(neighbour.id).await?.phase == VmPhase::Running);
        ensure!(daemon(appliance)? == hostd, "the daemon is another one");
        // And it can be started again.
        let again = api.vm_start(victim.id).await?;
        api.task_wait(again.task, secs(180)).await?;
        Ok(())
    })
}

/// The plug is pulled while volumes are being made: every one that was acknowledged is there afterwards.
#[test]
fn a_power_cut_loses_nothing_acknowledged() -> Result<()> {
    lab_test("a_power_cut_loses_nothing_acknowledged", async |lab| {
        let api = lab.prepared().await?.api.clone();
        let disk = lab.file("disk.raw");
        let writer = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let name = format!("v{number}");
                let request = VolumeCreate {
                    name: name.parse().expect("a name"),
                    size: Mib(1),
                    from_image: None,
                };
                match api.volume_create(&request).await {
                    Ok(made) => acknowledged.push((name, made.object.id)),
                    Err(ClientError::Refused { error, .. })
                        if error.code != ErrorCode::Unavailable =>
                    {
                        return Err(anyhow::anyhow!("volume {name} was refused: {error}"));
                    }
                    // The cut.
                    Err(_) => break,
                }
            }
            Ok(acknowledged)
        });
        let started = Instant::now();
        let seen = lab.appliance()?.api.clone();
        eventually("some volumes are agreed", secs(60), async || {
            Ok(Some(()).filter(|()| started.elapsed() > secs(3)))
        })
        .await?;
        ensure!(
            !seen.volume_list().await?.items.is_empty(),
            "nothing was written before the cut"
        );
        let access = lab.cut_power()?;
        let acknowledged = writer.await??;
        ensure!(
            acknowledged.len() >= 3,
            "only {} were acknowledged before the cut",
            acknowledged.len()
        );

        let api = lab.boot_again(&disk, access).await?.api.clone();
        let there = api.volume_list().await?.items;
        for (name, id) in &acknowledged {
            ensure!(
                there.iter().any(|volume| volume.id == *id),
                "volume {name} was acknowledged and is gone"
            );
        }
        println!(
            "{} volumes acknowledged before the cut, all there",
            acknowledged.len()
        );
        // What had been promised is also made true, or said to have failed.
        eventually("each volume is ready", secs(120), async || {
            let all = api.volume_list().await?.items;
            Ok(Some(()).filter(|()| all.iter().all(|volume| volume.phase == VolumePhase::Ready)))
        })
        .await
    })
}

/// A VM with a disk that starts with its host, up.
async fn starts_with_its_host(api: &Client) -> Result<(Vm, GuestConsole)> {
    let mut request = demonstration_with_disk(api, "web").await?;
    request.autostart = true;
    let vm = start(api, &request).await?;
    let mut console = GuestConsole::open(api, vm.id).await?;
    console.ready(secs(180)).await?;
    Ok((vm, console))
}

/// At its second boot, the guest's disk has what was put onto it at the first.
async fn note_is_kept(api: &Client, vm: VmId) -> Result<()> {
    let mut console = GuestConsole::open(api, vm).await?;
    ensure!(
        console.ready(secs(180)).await?.boots == 2,
        "the guest's disk forgot a boot"
    );
    let said = console.run("cat /data/note", secs(30)).await?;
    ensure!(said == "kept", "{said:?}");
    Ok(())
}

/// A VM that is to start with its host does so after a power cut, with its disk.
#[test]
fn a_vm_comes_back_after_a_power_cut() -> Result<()> {
    lab_test("a_vm_comes_back_after_a_power_cut", async |lab| {
        let api = lab.prepared().await?.api.clone();
        let disk = lab.file("disk.raw");
        let (vm, mut console) = starts_with_its_host(&api).await?;
        console
            .run("echo kept >/data/note && sync", secs(30))
            .await?;
        let access = lab.cut_power()?;

        let api = lab.boot_again(&disk, access).await?.api.clone();
        let back = phase(&api, vm.id, VmPhase::Running, secs(120)).await?;
        ensure!(
            back.generation > vm.generation,
            "generation {} again",
            back.generation
        );
        note_is_kept(&api, vm.id).await
    })
}

/// The host's power button: guests power themselves off first, so that what they had not written yet is on their disks; then the
/// machine is off. What starts with its host does so again.
#[test]
fn the_power_button_lets_guests_power_off() -> Result<()> {
    lab_test("the_power_button_lets_guests_power_off", async |lab| {
        let api = lab.prepared().await?.api.clone();
        let disk = lab.file("disk.raw");
        let (vm, mut console) = starts_with_its_host(&api).await?;
        // Nothing in the guest writes this out but its own shutdown.
        console
            .run(
                "echo 360000 >/proc/sys/vm/dirty_expire_centisecs; echo 0 >/proc/sys/vm/dirty_writeback_centisecs; echo kept >/data/note",
                secs(30),
            )
            .await?;
        let access = lab.press_power_button(secs(120))?;

        let api = lab.boot_again(&disk, access).await?.api.clone();
        phase(&api, vm.id, VmPhase::Running, secs(120)).await?;
        note_is_kept(&api, vm.id).await
    })
}

/// The state partition is full: writes are refused in words, reads go on, and with space again so do writes.
#[test]
fn a_full_data_disk_is_said_and_healed() -> Result<()> {
    lab_test("a_full_data_disk_is_said_and_healed", async |lab| {
        let appliance = lab.prepared().await?;
        let api = appliance.api.clone();
        appliance.agent()?.fill("/data/lab-filler", 8)?;

        // 64 MiB of random bytes cannot be stored in 8.
        let bytes: Vec<u8> = (0..64_u32 << 18)
            .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        let file = lab.file("big.raw");
        std::fs::write(&file, &bytes)?;
        let appliance = lab.appliance()?;
        let refusal = appliance
            .upload("big", api::images::ImageKind::Disk, &file)
            .await;
        let refusal = refusal
            .err()
            .context("an image larger than the disk was taken")?;
        let code = refusal
            .downcast_ref::<ClientError>()
            .and_then(ClientError::code);
        ensure!(code == Some(ErrorCode::Exhausted), "{refusal:#}");

        ensure!(
            api.health_get().await?.ready,
            "the appliance is not ready because data is full"
        );
        api.vm_list().await?;
        appliance.agent()?.remove("/data/lab-filler")?;
        appliance
            .upload("fits", api::images::ImageKind::Disk, &file)
            .await
            .context("with space again")
    })
}
