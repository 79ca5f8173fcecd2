//! The life of a VM, through the API only.

use anyhow::{Result, ensure};
use api::ErrorCode;
use api::images::{ImageFormat, ImageKind};
use api::units::Mib;
use api::vms::{DiskSpec, VmPhase, VmUpdate};
use api::volumes::VolumeCreate;
use sha2::{Digest, Sha256};
use testbed::expect::{eventually, refused, secs};
use testbed::guest::{GuestConsole, demonstration_with_disk, powered_off, start};
use testbed::lab::{hexadecimal, lab_test};
use testbed::media::packed;

/// Made, started, its disk and network used, restarted with its data, stopped by its own shutdown, changed, deleted.
#[test]
fn a_vm_lives_its_whole_life() -> Result<()> {
    lab_test("a_vm_lives_its_whole_life", async |lab| {
        let packed_file = lab.file("packed.qcow2");
        let packed = packed(&packed_file, 8)?;
        let appliance = lab.prepared().await?;
        let api = appliance.api.clone();
        let mut request = demonstration_with_disk(&api, "web").await?;
        // Another disk, whose content came as a qcow2 image.
        appliance
            .upload_as("packed", ImageKind::Disk, ImageFormat::Qcow2, &packed_file)
            .await?;
        let volume = VolumeCreate {
            name: "web-packed".parse()?,
            size: Mib(8),
            from_image: Some("packed".parse()?),
        };
        let made = api.volume_create(&volume).await?;
        api.task_wait(made.task, secs(120)).await?;
        request.disks.push(DiskSpec {
            volume: "web-packed".parse()?,
            read_only: true,
            limits: Default::default(),
        });
        let vm = start(&api, &request).await?;
        ensure!(vm.phase == VmPhase::Running, "it is {:?}", vm.phase);

        let mut console = GuestConsole::open(&api, vm.id).await?;
        let ready = console.ready(secs(180)).await?;
        ensure!(ready.boots == 1, "{ready:?}");
        ensure!(ready.address.starts_with("10.77.0."), "{ready:?}");

        // From the host into the guest: ICMP, HTTP, an echo of what was sent.
        let agent = appliance.agent()?;
        agent.ping(&ready.address)?;
        let page = agent.tcp(&format!("{}:80", ready.address), "GET / HTTP/1.0\r\n\r\n")?;
        ensure!(page.contains("limiquantix guest, boots=1"), "{page}");
        let echo = agent.tcp(&format!("{}:7", ready.address), "over the bridge and back")?;
        ensure!(echo == "over the bridge and back", "{echo}");
        // And from the guest to the host.
        console.run("ping -c 1 -W 5 10.77.0.1", secs(30)).await?;

        // The API tells the address it leased.
        eventually("the api shows the leased address", secs(30), async || {
            let seen = api.vm_get(vm.id).await?;
            Ok(seen
                .nics
                .first()
                .and_then(|nic| nic.address.clone())
                .filter(|address| *address == ready.address))
        })
        .await?;

        // The second disk is what was packed, byte for byte.
        let sum = console.run("sha256sum /dev/vdb", secs(60)).await?;
        let expected = hexadecimal(&Sha256::digest(&packed));
        ensure!(sum.starts_with(&expected), "{sum:?}, not {expected}");

        console
            .run("echo kept >/data/note && sync", secs(30))
            .await?;
        refused(api.vm_delete(vm.id).await, ErrorCode::WrongPhase)?;
        // What it did is counted.
        let metrics = api.metrics_get().await?;
        for family in ["vm_disk_writes", "vm_nic_sent_frames"] {
            let start = format!("lqx_{family}_total{{vm=\"web\"");
            let samples: Vec<&str> = metrics
                .lines()
                .filter(|line| line.starts_with(&start))
                .collect();
            let counted = samples
                .iter()
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .max();
            ensure!(counted > Some(0), "{family}: {samples:?}");
        }

        // A reboot asked for from outside: an orderly shutdown, then the same disk again.
        let reboot = api.vm_reboot(vm.id).await?;
        api.task_wait(reboot.task, secs(180)).await?;
        let mut console = GuestConsole::open(&api, vm.id).await?;
        ensure!(
            console.ready(secs(180)).await?.boots == 2,
            "the disk forgot a boot"
        );
        let said = console.run("cat /data/note", secs(30)).await?;
        ensure!(said == "kept", "{said:?}");

        // The guest's own power-off makes it stopped, not failed.
        console.line("poweroff").await?;
        powered_off(&api, vm.id).await?;

        let update = VmUpdate {
            memory: Some(Mib(320)),
            ..VmUpdate::default()
        };
        api.vm_update(vm.id, &update).await?;
        let started = api.vm_start(vm.id).await?;
        api.task_wait(started.task, secs(180)).await?;
        let mut console = GuestConsole::open(&api, vm.id).await?;
        ensure!(
            console.ready(secs(180)).await?.boots == 3,
            "the disk forgot a boot"
        );
        let memory = console.run("grep MemTotal /proc/meminfo", secs(30)).await?;
        let kib: u64 = memory.split_whitespace().nth(1).unwrap_or("0").parse()?;
        ensure!(kib > 270 * 1024, "{memory}");

        let killed = api.vm_kill(vm.id).await?;
        api.task_wait(killed.task, secs(60)).await?;
        let gone = api.vm_delete(vm.id).await?;
        api.task_wait(gone.task, secs(60)).await?;
        refused(api.vm_get(vm.id).await, ErrorCode::NotFound)?;
        // Its volume is still there and free.
        let volume = api.volume_get("web-data").await?;
        ensure!(volume.attached_to.is_none(), "{volume:?}");
        let removed = api.volume_delete("web-data").await?;
        api.task_wait(removed.task, secs(60)).await?;
        Ok(())
    })
}

/// Two guests side by side reach each other over their network.
#[test]
fn two_vms_on_one_network_talk_to_each_other() -> Result<()> {
    lab_test("two_vms_on_one_network_talk_to_each_other", async |lab| {
        let api = lab.prepared().await?.api.clone();
        let one = start(&api, &demonstration_with_disk(&api, "one").await?).await?;
        let two = start(&api, &demonstration_with_disk(&api, "two").await?).await?;
        let mut first = GuestConsole::open(&api, one.id).await?;
        let mut second = GuestConsole::open(&api, two.id).await?;
        let here = first.ready(secs(240)).await?;
        let there = second.ready(secs(240)).await?;
        ensure!(here.address != there.address, "both have {}", here.address);
        let page = first
            .run(&format!("wget -q -O - http://{}/", there.address), secs(60))
            .await?;
        ensure!(page.contains("limiquantix guest"), "{page}");
        Ok(())
    })
}
