//! Machines that stock UEFI firmware boots: OVMF as a distribution has it.
//!
//! Needs `/dev/kvm`, and by environment, or it skips and says so:
//! - `LQX_TEST_FIRMWARE_CODE`, `LQX_TEST_FIRMWARE_VARIABLES`: for example Debian's `OVMF_CODE_4M.fd`, `OVMF_VARS_4M.fd`
//! - `LQX_TEST_LOADER`: a boot loader that reads `loader/entries`, systemd-boot
//! - `LQX_TEST_KERNEL`: kernels; the first with an EFI stub is taken
//!
//! `sgdisk`, `mkfs.vfat` and `mcopy` make the disk. `LQX_TEST_NO_FIRMWARE` says why firmware cannot run on this KVM.
#![allow(clippy::unwrap_used, clippy::panic)]

mod guest;

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use guest::initramfs::{POWER_OFF, RESTART, one_shot};
use guest::{Guest, Spec, kernels, kvm};
use vmm::config::{DiskConfig, DiskFormat, RateLimits};
use vmm::control::ExitReason;

const MARKER: &str = "lqx-guest-is-up\n";
/// Where firmware looks on a disk it has no boot entry for.
const USUAL_PLACE: &str = "EFI/BOOT/BOOTX64.EFI";
/// Where it does not look by itself.
const OTHER_PLACE: &str = "EFI/lqx/loader.efi";

fn named(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok().filter(|path| !path.is_empty());
    if value.is_none() {
        eprintln!("SKIP: {variable} names nothing");
    }
    value
}

/// What a machine boots with.
struct Media {
    code: String,
    variables: File,
    loader: Vec<u8>,
    kernel: Vec<u8>,
}

impl Media {
    /// Fresh variables and the other files; or the reason to skip.
    fn find() -> Option<Self> {
        if let Ok(reason) = std::env::var("LQX_TEST_NO_FIRMWARE") {
            eprintln!("SKIP: {reason}");
            return None;
        }
        let read = |path: String| std::fs::read(path).unwrap();
        let kernels = kernels();
        let kernel = kernels
            .into_iter()
            .map(read)
            .find(|it| it.starts_with(b"MZ"));
        if kernel.is_none() {
            eprintln!("SKIP: LQX_TEST_KERNEL names no kernel with an EFI stub");
        }
        Some(Self {
            code: named("LQX_TEST_FIRMWARE_CODE")?,
            variables: guest::file(&read(named("LQX_TEST_FIRMWARE_VARIABLES")?)),
            loader: read(named("LQX_TEST_LOADER")?),
            kernel: kernel?,
        })
    }

    /// A disk whose EFI system partition has the loader at `place`, and a Linux that says it is up and ends by `command`.
    fn disk(&self, folder: &Path, place: &str, command: u32) -> File {
        let entry = "title one\nlinux /linux\ninitrd /initrd\n\
             options console=ttyS0 no_timer_check tsc=reliable panic=-1\n";
        esp(
            folder,
            &[
                (place, &self.loader),
                ("loader/entries/one.conf", entry.as_bytes()),
                ("linux", &self.kernel),
                ("initrd", &one_shot(MARKER, command)),
            ],
        )
    }

    fn machine(&self, disk: &File) -> Spec {
        let code = File::open(&self.code).unwrap();
        Spec {
            firmware: Some((code, self.variables.try_clone().unwrap())),
            memory_mib: 256,
            disks: vec![DiskConfig {
                id: "esp".into(),
                fd: disk.try_clone().unwrap().into_raw_fd(),
                read_only: false,
                format: DiskFormat::Raw,
                backing: vec![],
                serial: String::new(),
                limits: RateLimits::default(),
            }],
            rng: true,
            ..Spec::program(&[])
        }
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A disk of 65 MiB with one partition, an EFI system partition that has these files.
fn esp(folder: &Path, files: &[(&str, &[u8])]) -> File {
    const START: u64 = 1 << 20;
    let image = folder.join("disk");
    File::create(&image).unwrap().set_len(66 << 20).unwrap();
    run(Command::new("sgdisk")
        .args(["--new=1:2048:+64M", "--typecode=1:ef00"])
        .arg(&image));
    run(Command::new("mkfs.vfat")
        .args(["-F", "32", "--offset", "2048"])
        .arg(&image)
        .arg("65536"));
    let inside = format!("{}@@{START}", image.display());
    for folder in ["EFI", "EFI/BOOT", "EFI/lqx", "loader", "loader/entries"] {
        run(Command::new("mmd").args(["-i", &inside, &format!("::{folder}")]));
    }
    for (name, content) in files {
        let path = folder.join("content");
        std::fs::write(&path, content).unwrap();
        run(Command::new("mcopy")
            .args(["-i", &inside])
            .arg(&path)
            .arg(format!("::{name}")));
    }
    File::options().read(true).write(true).open(image).unwrap()
}

fn tell(guest: &mut Guest, command: &str) {
    guest.type_in(&format!("{command}\r"));
}

/// Linux told who the machine is, and found what the firmware had placed.
fn assert_linux_came_by_firmware(output: &str) {
    for said in [
        "EFI stub",
        "efi: EFI v2",
        "DMI: limiquantix Virtual Machine",
        "ACPI: FACP",
    ] {
        assert!(output.contains(said), "no {said:?} in {output}");
    }
}

#[test]
fn a_boot_entry_the_guest_made_is_found_after_power_off() {
    let Some(media) = Media::find() else { return };
    let Some(first) = kvm() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = media.disk(folder.path(), OTHER_PLACE, RESTART);
    // Nothing on the disk is where firmware would look: it comes to its shell.
    let spec = Spec {
        vcpus: 3,
        memory_mib: 4096,
        ..media.machine(&disk)
    };
    let mut guest = Guest::start(first, spec);
    guest.wait_output("UEFI Interactive Shell");
    guest.wait_output("any other key to continue");
    guest.type_in("\r");
    let path = OTHER_PLACE.replace('/', "\\");
    tell(&mut guest, &format!("bcfg boot add 0 fs0:\\{path} ours"));
    guest.wait_output("bcfg: Add Boot");
    tell(&mut guest, "echo done-%lasterror%");
    guest.wait_output("done-0x0");
    assert!(guest.metric("flash_syncs_total") > 0);
    assert_eq!(guest.metric("flash_volume_errors_total"), 0);
    assert_eq!(guest.metric("fw_cfg_refused_requests_total"), 0);
    tell(&mut guest, "reset -s");
    assert_eq!(guest.wait_end().0, ExitReason::GuestPowerOff);

    let mut guest = Guest::start(kvm().unwrap(), media.machine(&disk));
    guest.wait_output("\"ours\"");
    assert_linux_came_by_firmware(guest.wait_output(MARKER.trim()));
    let (reason, output) = guest.wait_end();
    assert_eq!(reason, ExitReason::GuestReset, "{output}");
}

#[test]
fn a_disk_boots_by_what_is_at_the_usual_place() {
    let Some(media) = Media::find() else { return };
    let Some(kvm) = kvm() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = media.disk(folder.path(), USUAL_PLACE, POWER_OFF);
    let spec = Spec {
        vcpus: 2,
        ..media.machine(&disk)
    };
    let mut guest = Guest::start(kvm, spec);
    assert_linux_came_by_firmware(guest.wait_output(MARKER.trim()));
    let (reason, output) = guest.wait_end();
    assert_eq!(reason, ExitReason::GuestPowerOff, "{output}");
}
