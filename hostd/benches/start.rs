//! From the start of a VM process to what its guest says first, ours and QEMU's `microvm` in turns.
//!
//! The guest is a few instructions behind a PVH entry that write one byte to COM1. Ours is launched as the daemon does
//! it: folder, sockets, jail, `hostd vmm`; QEMU is started plainly, without a jail. Both run from memory, so that reading
//! programs from a disk does not count, and both have 128 MiB and one vCPU.
//!
//! `cargo bench --workspace --bench start` where `/dev/kvm` is, or through `kvm-runner` as cargo's runner. With
//! `START_SAMPLES` set, the last line is all samples as JSON, in milliseconds.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api::ids::{ImageId, VmId};
use hostd::vms::launch::{LaunchConfig, UID_FIRST, VmFolder, launch};
use hostd::vms::plan::PlannedBoot;
use hostd::vms::{Opened, OpenedBoot, VmPlan};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use uuid::Uuid;

const MEMORY_MIB: u64 = 128;
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};
const QEMU: &str = "qemu-system-x86_64";

fn main() -> Result<()> {
    let mut rounds = 10;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // The harness is asked for its tests: there are none here.
            "--list" => return Ok(()),
            "--test" => rounds = 1,
            _ => {}
        }
    }
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        println!("skipped: /dev/kvm cannot be opened");
        return Ok(());
    }
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, guest())?;
    let program = folder.path().join("hostd");
    fs::copy(env!("CARGO_BIN_EXE_hostd"), &program)?;
    let config = LaunchConfig {
        run: folder.path().join("vms"),
        cgroup_root: None,
        program,
        kvm: "/dev/kvm".into(),
    };
    let qemu = in_memory(folder.path())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let one = ours_once(&config, &kernel)?;
        let other = qemu.once(&kernel)?;
        eprintln!(
            "round {round}: ours {:.1} ms, microvm {:.1} ms",
            millis(one),
            millis(other)
        );
        // The first of each warms the caches.
        if round > 0 {
            ours.push(millis(one));
            theirs.push(millis(other));
        }
    }
    for (what, samples) in [("ours", &ours), ("microvm", &theirs)] {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        println!(
            "{what:8} median {:8.1} ms of {}",
            sorted[sorted.len() / 2],
            sorted.len()
        );
    }
    if std::env::var_os("START_SAMPLES").is_some() {
        println!("{}", serde_json::json!({ "ours": ours, "microvm": theirs }));
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ours_once(config: &LaunchConfig, kernel: &Path) -> Result<Duration> {
    let plan = VmPlan {
        // No dice: a guest that has just been resumed may have no entropy yet, and would wait for it.
        vm: VmId(Uuid::from_u128(1)),
        generation: 1,
        name: "start".to_owned(),
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        boot: PlannedBoot::Kernel {
            kernel: ImageId(Uuid::from_u128(2)),
            initrd: None,
        },
        cmdline: String::new(),
        disks: Vec::new(),
        nics: Vec::new(),
    };
    let opened = Opened {
        boot: OpenedBoot::Kernel {
            kernel: File::open(kernel)?,
            initrd: None,
        },
        disks: Vec::new(),
        taps: Vec::new(),
    };
    let folder = VmFolder::of(&config.run, plan.vm);
    let start = Instant::now();
    let launched = launch(config, None, &plan, opened, UID_FIRST)?;
    let mut serial = UnixStream::connect(folder.serial())?;
    let first = first_byte(&mut serial);
    let taken = start.elapsed();
    pidfd_send_signal(&launched.pidfd, Signal::KILL)?;
    waitid(WaitId::PidFd(launched.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    first.with_context(|| format!("ours: {:?}", folder.last_words()))?;
    folder.clear()?;
    Ok(taken)
}

/// QEMU with its libraries and firmware in memory.
struct Qemu {
    program: PathBuf,
    libraries: PathBuf,
    firmware: PathBuf,
}

fn in_memory(folder: &Path) -> Result<Qemu> {
    let found = ["/usr/bin", "/usr/local/bin", "/bin"]
        .map(|folder| Path::new(folder).join(QEMU))
        .into_iter()
        .find(|file| file.is_file());
    let found = found.context("QEMU is not installed")?;
    let qemu = Qemu {
        program: folder.join(QEMU),
        libraries: folder.join("lib"),
        firmware: folder.join("firmware"),
    };
    fs::create_dir(&qemu.libraries)?;
    fs::create_dir(&qemu.firmware)?;
    let needs = Command::new("ldd").arg(&found).output()?;
    for line in String::from_utf8_lossy(&needs.stdout).lines() {
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            let name = Path::new(path).file_name().context("a library's name")?;
            fs::copy(path, qemu.libraries.join(name))?;
        }
    }
    for name in ["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin"] {
        fs::copy(
            Path::new("/usr/share/qemu").join(name),
            qemu.firmware.join(name),
        )?;
    }
    fs::copy(&found, &qemu.program)?;
    Ok(qemu)
}

impl Qemu {
    fn once(&self, kernel: &Path) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command
            .env("LD_LIBRARY_PATH", &self.libraries)
            .arg("-L")
            .arg(&self.firmware)
            .args(["-M", "microvm,rtc=off", "-accel", "kvm", "-cpu", "host"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-m", &format!("{MEMORY_MIB}M"), "-smp", "1"])
            .args(["-serial", "stdio", "-kernel"])
            .arg(kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn()?;
        let mut serial = child.stdout.take().context("no output")?;
        let first = first_byte(&mut serial);
        let taken = start.elapsed();
        child.kill()?;
        child.wait()?;
        first.context("microvm")?;
        Ok(taken)
    }
}

fn first_byte(from: &mut (impl Read + AsFd)) -> Result<()> {
    let mut ready = [PollFd::new(from, PollFlags::IN)];
    ensure!(
        poll(&mut ready, Some(&PATIENCE))? == 1,
        "the guest said nothing"
    );
    let mut byte = [0];
    from.read_exact(&mut byte)
        .context("the guest said nothing")?;
    ensure!(byte == [b'!'], "the guest said {byte:?}");
    Ok(())
}

/// An ELF kernel with a PVH entry (Xen's `PHYS32_ENTRY` note): writes one byte to COM1 and halts for ever.
fn guest() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let code = [
        0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8
        0xb0, b'!', 0xee, // mov al, '!'; out dx, al
        0xf4, 0xeb, 0xfd, // hlt; jmp to the hlt
    ];
    let mut note = Vec::new();
    // An 8-byte descriptor in a 64-bit ELF.
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    let (note_at, code_at) = (64 + 2 * 56, 0x1000_usize);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(2_u16.to_le_bytes());
    elf.extend(62_u16.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, at: u64, address: u64, length: u64, align: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7_u32.to_le_bytes());
        for word in [at, address, address, length, length, align] {
            elf.extend(word.to_le_bytes());
        }
    };
    header(1, code_at as u64, ENTRY, code.len() as u64, 0x1000);
    header(4, note_at, 0, note.len() as u64, 4);
    elf.extend(note);
    elf.resize(code_at, 0);
    elf.extend(code);
    elf
}
