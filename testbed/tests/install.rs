//! From the medium to the disk, as a newcomer does it: UEFI, ISO, an empty machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use api::system::Mode;
use testbed::accel::KERNEL_ARGUMENTS;
use testbed::artifacts::dist;
use testbed::expect::secs;
use testbed::lab::{Appliance, BOOT, Lab, lab_test};
use testbed::machine::{Boot, Hardware, Machine, MachineConfig};
use testbed::media;
use testbed::web::{Page, Web};

/// Figures of the issue: it installs and runs on a host of 2 GiB and 8 GB.
const DISK_BYTES: u64 = 8_000_000_000;

fn from_iso(lab: &Lab, hardware: Hardware, disk: &Path, seed: Option<&str>) -> Result<Machine> {
    let mut config = MachineConfig::new("installer", Boot::Firmware).disk(disk);
    config.hardware = hardware;
    config.medium = Some(dist("limiquantix.iso")?);
    if let Some(text) = seed {
        let path = lab.file("seed.raw");
        media::seed(&path, text)?;
        config.seed = Some(path);
    }
    config.start(lab.folder())
}

/// ISO and seed: nobody touches it, and it comes up from its own disk. The medium stays in, as it does in a real rack. A
/// machine with SATA disks.
#[test]
fn a_seed_installs_without_anybody() -> Result<()> {
    lab_test("a_seed_installs_without_anybody", async |lab| {
        let disk = lab.file("disk.raw");
        media::blank(&disk, DISK_BYTES)?;
        let seed = "[install]\ndisk = \"lab-disk-0\"\nhostname = \"seeded\"\n";
        let machine = from_iso(lab, Hardware::Older, &disk, Some(seed))?;
        // Installing, restarting, booting from the disk, and its status screen: all of it must pass by for this to appear.
        let appliance = lab.keep(Appliance::enrol(machine, BOOT).await?)?;
        let system = appliance.api.system_get().await?;
        ensure!(system.mode == Mode::Run, "{system:?}");
        ensure!(
            system
                .hostname
                .as_ref()
                .is_some_and(|name| name.as_str() == "seeded"),
            "{system:?}"
        );
        let hosts = appliance.api.host_list().await?.items;
        ensure!(hosts.len() == 1 && hosts[0].inventory.kvm, "{hosts:?}");

        // Without the medium, from the disk alone; what was enrolled is still there.
        let access = lab.cut_power()?;
        let mut config = MachineConfig::new("installed", Boot::Firmware).disk(&disk);
        config.hardware = Hardware::Older;
        let machine = config.start(lab.folder())?;
        let appliance = lab.keep(Appliance::known(machine, access)?)?;
        appliance.ready(BOOT).await?;
        let system = appliance.api.system_get().await?;
        ensure!(system.mode == Mode::Run, "{system:?}");
        Ok(())
    })
}

/// A disk with something on it and a seed that does not say it may go: nothing is written, and the screen says why.
#[test]
fn a_disk_with_data_is_not_touched_without_consent() -> Result<()> {
    lab_test(
        "a_disk_with_data_is_not_touched_without_consent",
        async |lab| {
            let disk = lab.file("disk.raw");
            // Another, installed system: the case where guessing would hurt most.
            media::copy(&dist("limiquantix.raw")?, &disk)?;
            let before = digest(&disk)?;
            // Its own boot entry would win; the medium is what is to be booted.
            let mut config = MachineConfig::new("installer", Boot::Firmware).disk(&disk);
            config.medium = Some(dist("limiquantix.iso")?);
            config.medium_first = true;
            let seed = lab.file("seed.raw");
            media::seed(&seed, "[install]\ndisk = \"lab-disk-0\"\n")?;
            config.seed = Some(seed);
            let mut machine = config.start(lab.folder())?;
            machine
                .serial()
                .wait_for_screen("(?i)(consent|not blank|erase)", BOOT)?;
            machine.cut_power()?;
            ensure!(digest(&disk)? == before, "the disk was written to");
            Ok(())
        },
    )
}

/// By hand, over the serial line, from a stick onto an NVMe disk.
#[test]
fn a_person_installs_with_the_keyboard() -> Result<()> {
    lab_test("a_person_installs_with_the_keyboard", async |lab| {
        let disk = lab.file("disk.raw");
        media::blank(&disk, DISK_BYTES)?;
        let machine = from_iso(lab, Hardware::Server, &disk, None)?;
        let serial = machine.serial();
        let short: Duration = secs(60);
        serial.wait_for_screen("Install: choose the disk", BOOT)?;
        serial.wait_for_screen("lab-disk-0", short)?;
        serial.send("\r")?;
        serial.wait_for_screen("This disk is blank", short)?;
        // The name has to be typed: one key too many must not erase anything.
        serial.send("nvme0n1")?;
        serial.wait_for_screen("install onto it: nvme0n1_", short)?;
        serial.send("\r")?;
        let appliance = lab.keep(Appliance::enrol(machine, BOOT).await?)?;
        ensure!(appliance.api.system_get().await?.mode == Mode::Run);
        Ok(())
    })
}

/// The installer booted over the network, as a PXE server would: kernel and initramfs are handed over, the rest comes by HTTP.
fn from_network(lab: &Lab, name: &str, disk: &Path, arguments: &str) -> Result<Machine> {
    let boot = Boot::Direct {
        kernel: dist("vmlinux")?,
        initrd: dist("initrd.lz4")?,
        arguments: format!(
            "{} {KERNEL_ARGUMENTS} {arguments}",
            image::uki::COMMAND_LINE
        ),
    };
    let mut config = MachineConfig::new(name, boot).disk(disk);
    config.outside = true;
    // Handed over once more, the kernel would install once more: this machine's restart is to be seen, not carried out.
    config.no_reboot = true;
    config.start(lab.folder())
}

/// `lqx.seed=URL`: nobody touches it, there is no medium, and it comes up from a disk that was blank.
#[test]
fn a_seed_from_a_url_installs_over_the_network() -> Result<()> {
    lab_test("a_seed_from_a_url_installs_over_the_network", async |lab| {
        let disk = lab.file("disk.raw");
        media::blank(&disk, DISK_BYTES)?;
        let seed = "[install]\ndisk = \"lab-disk-0\"\nhostname = \"from-url\"\n";
        let web = Web::serve(vec![
            ("/seed.toml", Page::Bytes(seed.into())),
            ("/limiquantix.efi", Page::File(dist("limiquantix.efi")?)),
        ])?;
        let arguments = format!(
            "lqx.seed={} lqx.uki={}",
            web.url("/seed.toml"),
            web.url("/limiquantix.efi")
        );
        let mut installer = from_network(lab, "installer", &disk, &arguments)?;
        installer.wait_off(BOOT)?;
        let machine = MachineConfig::new("installed", Boot::Firmware)
            .disk(&disk)
            .start(lab.folder())?;
        let appliance = lab.keep(Appliance::enrol(machine, BOOT).await?)?;
        let system = appliance.api.system_get().await?;
        ensure!(system.mode == Mode::Run, "{system:?}");
        ensure!(
            system
                .hostname
                .as_ref()
                .is_some_and(|name| name.as_str() == "from-url"),
            "{system:?}"
        );
        Ok(())
    })
}

/// A seed that is not to be had, or is none: the screen says what failed and why, nothing is written, and a person can go on.
#[test]
fn a_bad_seed_url_is_told_and_a_person_goes_on() -> Result<()> {
    lab_test("a_bad_seed_url_is_told_and_a_person_goes_on", async |lab| {
        let web = Web::serve(vec![(
            "/garbage",
            Page::Bytes(b"\x00<html>no</html>".into()),
        )])?;
        for (name, path, why) in [
            ("missing", "/seed.toml", "could not fetch the seed"),
            ("garbage", "/garbage", "the seed is not valid"),
        ] {
            let disk = lab.file(&format!("{name}.raw"));
            media::blank(&disk, DISK_BYTES)?;
            let arguments = format!("lqx.seed={}", web.url(path));
            let mut machine = from_network(lab, name, &disk, &arguments)?;
            let serial = machine.serial();
            serial.wait_for_screen("Check failed", BOOT)?;
            serial.wait_for_screen(why, secs(10))?;
            serial.wait_for_screen("lab-disk-0", secs(60))?;
            serial.send("\r")?;
            serial.wait_for_screen("This disk is blank", secs(60))?;
            ensure!(machine.is_on());
            machine.cut_power()?;
            ensure!(untouched(&disk)?, "the disk was written to");
        }
        Ok(())
    })
}

/// A blank disk takes no space until something is written.
fn untouched(disk: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(disk)?.blocks() == 0)
}

fn digest(path: &Path) -> Result<Vec<u8>> {
    use sha2::{Digest, Sha256};
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash)?;
    Ok(hash.finalize().to_vec())
}
