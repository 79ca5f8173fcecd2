//! Guests that boot by UEFI firmware, in a whole appliance.

use std::fs;

use anyhow::{Result, ensure};
use api::images::ImageKind;
use api::units::Mib;
use api::vms::{BootSpec, DiskSpec};
use api::volumes::VolumeCreate;
use testbed::accel::Accelerator;
use testbed::artifacts::{dist, uki_stub};
use testbed::expect::secs;
use testbed::guest::{GuestConsole, demonstration_with_disk, powered_off, start};
use testbed::lab::lab_test;
use testbed::{media, needs, qemu};

/// A disk with an operating system on it is uploaded, a volume made from it, and a VM without a kernel of ours boots it: by what
/// lies at the usual place of its EFI system partition. It restarts, powers off, and boots again.
#[test]
fn uefi_a_vm_boots_what_is_on_its_disk() -> Result<()> {
    let name = "uefi_a_vm_boots_what_is_on_its_disk";
    if matches!(Accelerator::detect(), Ok(Accelerator::Tcg)) && qemu::mended().is_none() {
        needs::skip(name, qemu::NOT_MENDED);
        return Ok(());
    }
    lab_test(name, async |lab| {
        let loader = lab.file("guest.efi");
        let sections = [
            (".osrel", b"ID=guest\nNAME=guest\n".to_vec()),
            (".cmdline", b"console=ttyS0 quiet no_timer_check".to_vec()),
            (".linux", fs::read(dist("guest/vmlinuz")?)?),
            (".initrd", fs::read(dist("guest/initrd")?)?),
        ];
        fs::write(
            &loader,
            image::uki::assemble(&fs::read(uki_stub()?)?, &sections)?,
        )?;
        let disk = lab.file("system.raw");
        media::bootable(&disk, &loader)?;

        let appliance = lab.prepared().await?;
        let api = appliance.api.clone();
        appliance.upload("system", ImageKind::Disk, &disk).await?;
        let volume = VolumeCreate {
            name: "system".parse()?,
            size: Mib(fs::metadata(&disk)?.len().div_ceil(1 << 20)),
            from_image: Some("system".parse()?),
        };
        let made = api.volume_create(&volume).await?;
        api.task_wait(made.task, secs(120)).await?;
        let mut request = demonstration_with_disk(&api, "uefi").await?;
        request.boot = BootSpec::Firmware {};
        request.disks.push(DiskSpec {
            volume: "system".parse()?,
            read_only: false,
            limits: Default::default(),
        });
        let vm = start(&api, &request).await?;
        let mut console = GuestConsole::open(&api, vm.id).await?;
        ensure!(console.ready(secs(400)).await?.boots == 1);
        // The firmware's own variables are there for the guest.
        console.run("ls -d /sys/firmware/efi", secs(60)).await?;

        let reboot = api.vm_reboot(vm.id).await?;
        api.task_wait(reboot.task, secs(180)).await?;
        let mut console = GuestConsole::open(&api, vm.id).await?;
        ensure!(console.ready(secs(400)).await?.boots == 2);

        console.line("poweroff").await?;
        powered_off(&api, vm.id).await
    })
}
