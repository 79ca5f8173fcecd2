//! Runs a program of this machine in a guest with `/dev/kvm`, as if it ran here.
//!
//! ```text
//!  once:   boot a small guest → /dev/kvm is there → stop → RAM is a file, devices are a small file beside it
//!  a run:  the same RAM file mapped copy-on-write → resume (no boot) → host's / over 9p, read-only, under an overlay
//!          → chroot → PROGRAM with the same folder, environment, arguments → its output and exit status come back
//! ```
//!
//! Nothing the program writes reaches this machine, but for folders named in `LQX_RUNNER_RW`. Cargo uses it as a `runner`:
//! then `cargo test` compiles here and runs there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::accel::{Accelerator, KERNEL_ARGUMENTS};
use crate::agent;
use crate::agent::runner::{Job, Said};
use crate::artifacts::{GuestKernel, cache, dist, modules_of, unpacked};
use crate::initramfs::Initramfs;
use crate::machine::{FIRMWARE_CODE, FIRMWARE_VARIABLES};
use crate::modules::Modules;
use crate::process;
use crate::qemu;
use crate::qmp::Qmp;

/// What `--help` says.
pub const HELP: &str = "\
kvm-runner PROGRAM [ARGUMENT...]   run it in a guest that has /dev/kvm; stdout, stderr and exit status come back
kvm-runner --prepare               only make the saved guest

  LQX_RUNNER_KERNEL    ELF vmlinux or bzImage (default: dist/vmlinux)
  LQX_RUNNER_MODULES   its lib/modules/RELEASE (default: where `make uki` unpacked it)
  LQX_RUNNER_MEMORY    MiB (1536)
  LQX_RUNNER_TIMEOUT   seconds for one program (900); past it the exit status is 124
  LQX_RUNNER_RW        folders the program may write for good, a:b
  LQX_RUNNER_VERBOSE   1: timings on stderr
  LQX_ACCEL            kvm or tcg, instead of finding out
";

/// What the guest loads before it is saved.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    // libcrc32c, below netfilter and ext4, takes it by name when it is loaded.
    "crc32c_generic",
    "kvm-amd",
    "kvm-intel",
    "tun",
    "tap",
    "bridge",
    "veth",
    "loop",
    "vhost_net",
    "virtio_blk",
    "virtio_net",
    "nf_tables",
    "nft_ct",
    "nft_masq",
    "nft_chain_nat",
    "ext4",
    "vfat",
    "nls_cp437",
    "nls_ascii",
];

/// The program ended, or `timeout` passed.
const TIMED_OUT: i32 = 124;

struct Settings {
    qemu: PathBuf,
    kernel: GuestKernel,
    accelerator: Accelerator,
    memory_mib: u64,
    timeout: Duration,
    writable: Vec<PathBuf>,
    verbose: bool,
    started: Instant,
}

/// Where a saved guest is.
struct Saved {
    folder: PathBuf,
}

impl Saved {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Runs `arguments` and returns the exit status to end with.
pub fn main(arguments: &[String]) -> Result<i32> {
    let settings = Settings::from_environment()?;
    let saved = saved_guest(&settings)?;
    if arguments[0] == "--prepare" {
        println!(
            "kvm-runner: guest ready in {} ({})",
            saved.folder.display(),
            settings.accelerator
        );
        return Ok(0);
    }
    run(&settings, &saved, arguments)
}

impl Settings {
    fn from_environment() -> Result<Self> {
        let number = |name: &str, default: u64| -> Result<u64> {
            std::env::var(name).map_or(Ok(default), |text| {
                text.parse().with_context(|| format!("{name} is a number"))
            })
        };
        let writable = std::env::var("LQX_RUNNER_RW").unwrap_or_default();
        Ok(Self {
            qemu: qemu::program(),
            kernel: GuestKernel::find()?,
            accelerator: Accelerator::detect()?,
            memory_mib: number("LQX_RUNNER_MEMORY", 1536)?,
            timeout: Duration::from_secs(number("LQX_RUNNER_TIMEOUT", 900)?),
            writable: writable
                .split(':')
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .collect(),
            verbose: std::env::var("LQX_RUNNER_VERBOSE").is_ok_and(|value| value == "1"),
            started: Instant::now(),
        })
    }

    fn log(&self, what: &str) {
        if self.verbose {
            eprintln!(
                "kvm-runner: {:.2} s: {what}",
                self.started.elapsed().as_secs_f64()
            );
        }
    }

    /// What a saved state depends on: it is of use only to the very same machine.
    fn key(&self, agent: &Path) -> Result<String> {
        let qemu = process::mortal(&self.qemu)
            .arg("--version")
            .output()
            .context("asking QEMU for its version")?;
        let mut hash = Sha256::new();
        hash.update(&qemu.stdout);
        hash.update(fs::read(agent).with_context(|| format!("reading {}", agent.display()))?);
        for path in [
            &self.kernel.kernel,
            &self.kernel.modules.join("modules.dep"),
        ] {
            let about =
                fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
            hash.update(format!("{path:?} {} {:?}", about.len(), about.modified()?));
        }
        hash.update(format!(
            "{:?} {} {} {MODULES:?}",
            self.accelerator,
            self.memory_mib,
            self.writable.len()
        ));
        let digest = hash.finalize();
        Ok(digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

/// `lab-agent` lies beside this program: cargo built both.
pub fn agent_binary() -> Result<PathBuf> {
    let here = std::env::current_exe().context("asking for our own path")?;
    let file = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("lab-agent"))
        .find(|file| file.is_file());
    file.context(
        "`lab-agent` is not beside this program: `cargo build --workspace --bin lab-agent`",
    )
}

/// The saved guest for these settings, made now when there is none. Two that want one at once make one.
fn saved_guest(settings: &Settings) -> Result<Saved> {
    let agent = agent_binary()?;
    let top = cache().join("kvm-runner");
    fs::create_dir_all(&top)?;
    let lock = File::create(top.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive).context("waiting for the other runner")?;
    let saved = Saved {
        folder: top.join(settings.key(&agent)?),
    };
    if !saved.file("ram").is_file() {
        for old in fs::read_dir(&top)?
            .flatten()
            .filter(|entry| entry.path().is_dir())
        {
            // A guest in use keeps its files open; what cannot be removed is removed next time.
            let _ = fs::remove_dir_all(old.path());
        }
        prepare(settings, &saved, &agent).context("making the saved guest")?;
    }
    Ok(saved)
}

fn prepare(settings: &Settings, saved: &Saved, agent: &Path) -> Result<()> {
    let work = tempfile::Builder::new()
        .prefix("prepare-")
        .tempdir_in(saved.folder.parent().unwrap_or(Path::new("/tmp")))?;
    fs::write(
        work.path().join("initrd"),
        guest_initramfs(settings, agent)?,
    )?;
    fs::write(work.path().join("test-initrd"), test_initramfs(agent)?)?;
    let ram = work.path().join("ram");
    File::create(&ram)?.set_len(settings.memory_mib << 20)?;
    let mut guest = Guest::start(settings, &work.path().join("initrd"), &ram, Ram::Shared)?;
    let mut line = String::new();
    guest
        .control
        .get_ref()
        .set_read_timeout(Some(Duration::from_secs(180)))?;
    guest
        .control
        .read_line(&mut line)
        .context("waiting for the guest to boot")?;
    match serde_json::from_str(&line) {
        Ok(Said::Ready { kvm: true }) => settings.log("booted"),
        Ok(Said::Ready { kvm: false }) => bail!("the guest has no /dev/kvm\n{}", guest.console()),
        _ => bail!("the guest did not come up\n{}", guest.console()),
    }
    guest.qmp.call("stop", serde_json::json!({}))?;
    guest
        .qmp
        .save_devices(&work.path().join("devices").display().to_string())?;
    drop(guest);
    fs::rename(work.keep(), &saved.folder)?;
    settings.log("saved");
    Ok(())
}

fn test_initramfs(agent: &Path) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for folder in ["dev", "lab", "lab/proc"] {
        archive.dir(folder)?;
    }
    archive.console()?;
    archive.copy("init", 0o755, agent)?;
    archive.finish()
}

fn guest_initramfs(settings: &Settings, agent: &Path) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for folder in ["dev", "proc", "sys", "lab", "lab/modules", "lab/proc"] {
        archive.dir(folder)?;
    }
    archive.console()?;
    archive.copy("init", 0o755, agent)?;
    for (number, file) in Modules::read(&settings.kernel.modules)?
        .closure(MODULES)
        .iter()
        .enumerate()
    {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.copy(&format!("lab/modules/{number:03}-{name}"), 0o644, file)?;
    }
    archive.finish()
}

fn run(settings: &Settings, saved: &Saved, arguments: &[String]) -> Result<i32> {
    let mut guest = Guest::start(
        settings,
        &saved.file("initrd"),
        &saved.file("ram"),
        Ram::Private,
    )?;
    let pumps = [
        guest.pump(2, std::io::stdout())?,
        guest.pump(3, std::io::stderr())?,
    ];
    guest
        .qmp
        .load_devices(&saved.file("devices").display().to_string())?;
    settings.log("resumed");
    let mut job = serde_json::to_vec(&settings.job(saved, arguments)?)?;
    job.push(b'\n');
    guest.control.get_mut().write_all(&job)?;

    guest
        .control
        .get_ref()
        .set_read_timeout(Some(settings.timeout))?;
    let mut line = String::new();
    match guest.control.read_line(&mut line) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            eprintln!(
                "kvm-runner: not done after {} s\n{}",
                settings.timeout.as_secs(),
                guest.console()
            );
            return Ok(TIMED_OUT);
        }
        Err(error) => return Err(error).context("listening to the guest"),
    }
    let code = match serde_json::from_str(&line) {
        Ok(Said::Exit(code)) => code,
        Ok(Said::Failed(reason)) => bail!("{reason}"),
        _ => bail!("the guest died\n{}", guest.console()),
    };
    settings.log("program ended");
    // An orderly end lets QEMU hand over the last output; then its sockets close and the pumps end.
    let _ = guest.qmp.call("quit", serde_json::json!({}));
    let _ = guest.child.wait();
    for pump in pumps {
        let _ = pump.join();
    }
    Ok(code)
}

impl Settings {
    fn job(&self, saved: &Saved, arguments: &[String]) -> Result<Job> {
        let here = std::env::current_dir()?;
        let program = match arguments[0].contains('/') {
            true => here.join(&arguments[0]).display().to_string(),
            false => arguments[0].clone(),
        };
        let mut environment: BTreeMap<String, String> = std::env::vars().collect();
        environment.insert("LQX_KVM_RUNNER".to_owned(), "1".to_owned());
        let mut offer = |name: &str, value: String| {
            environment.entry(name.to_owned()).or_insert(value);
        };
        // Kernels for tests that boot a real one: the ELF one first, which is the quick one. Both have the same modules.
        if let (Ok(elf), Ok(compressed)) = (dist("guest/vmlinux"), dist("guest/vmlinuz")) {
            offer(
                "LQX_TEST_KERNEL",
                format!("{}:{}", elf.display(), compressed.display()),
            );
            offer("LQX_TEST_MODULES", modules_of(&elf)?.display().to_string());
        }
        // The smallest initramfs that ends by itself.
        offer(
            "LQX_TEST_INITRD",
            saved.file("test-initrd").display().to_string(),
        );
        offer("LQX_TEST_MARKER", agent::UP_MARKER.to_owned());
        if self.accelerator == Accelerator::Tcg && qemu::mended().is_none() {
            offer("LQX_TEST_NO_FIRMWARE", qemu::NOT_MENDED.to_owned());
        }
        offer("LQX_TEST_FIRMWARE_CODE", FIRMWARE_CODE.to_owned());
        offer("LQX_TEST_FIRMWARE_VARIABLES", FIRMWARE_VARIABLES.to_owned());
        if let Some(loader) = unpacked("usr/lib/systemd/boot/efi/systemd-bootx64.efi") {
            offer("LQX_TEST_LOADER", loader.display().to_string());
        }
        let mut entropy = vec![0; agent::entropy::BYTES];
        File::open("/dev/urandom")?.read_exact(&mut entropy)?;
        let writable = self.writable.iter().enumerate();
        Ok(Job {
            now_seconds: i64::try_from(
                SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)?
                    .as_secs(),
            )?,
            entropy,
            writable: writable
                .map(|(at, path)| (format!("rw{at}"), path.display().to_string()))
                .collect(),
            program,
            arguments: arguments[1..].to_vec(),
            environment,
            folder: here.display().to_string(),
        })
    }
}

/// How the guest's memory is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ram {
    /// What the guest writes is in the file: to be saved.
    Shared,
    /// Copy-on-write: the file stays as it was saved.
    Private,
}

/// A QEMU with the ports we talk through. Dropping it ends it.
struct Guest {
    child: Child,
    qmp: Qmp,
    control: BufReader<UnixStream>,
    ports: Vec<Option<UnixStream>>,
    folder: tempfile::TempDir,
}

impl Guest {
    fn start(settings: &Settings, initrd: &Path, ram: &Path, mapping: Ram) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kvm-runner-").tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut command = process::mortal(&settings.qemu);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-M",
            "q35,vmport=off,smm=off",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args(settings.accelerator.arguments());
        let memory = settings.memory_mib;
        let share = if mapping == Ram::Shared { "on" } else { "off" };
        command.args([
            "-m",
            &format!("{memory}M"),
            "-machine",
            "memory-backend=ram",
        ]);
        command.args([
            "-object",
            &format!(
                "memory-backend-file,id=ram,size={memory}M,mem-path={},share={share}",
                ram.display()
            ),
        ]);
        command
            .arg("-kernel")
            .arg(&settings.kernel.kernel)
            .arg("-initrd")
            .arg(initrd);
        command.args([
            "-append",
            &format!("console=ttyS0 lqx.agent=runner {KERNEL_ARGUMENTS}"),
        ]);
        command.args([
            "-chardev",
            &format!("file,id=console,path={}", at("console")),
            "-serial",
            "chardev:console",
        ]);
        command.args(["-device", "virtio-serial-pci,id=ports"]);
        let mut listeners = Vec::new();
        for (number, name) in ["qmp", "control", "out", "err"].into_iter().enumerate() {
            listeners.push(UnixListener::bind(at(name))?);
            command.args(["-chardev", &format!("socket,id={name},path={}", at(name))]);
            match number {
                0 => command.args(["-mon", "chardev=qmp,mode=control"]),
                _ => command.args([
                    "-device",
                    &format!("virtserialport,bus=ports.0,nr={number},chardev={name}"),
                ]),
            };
        }
        command.args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        for (number, path) in settings.writable.iter().enumerate() {
            command.args([
                "-fsdev",
                &format!(
                    "local,id=rw{number},path={},security_model=none,multidevs=remap",
                    path.display()
                ),
            ]);
            command.args([
                "-device",
                &format!("virtio-9p-pci,fsdev=rw{number},mount_tag=rw{number}"),
            ]);
        }
        if mapping == Ram::Private {
            command.args(["-incoming", "defer", "-S"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = process::spawn(command)?;
        let mut streams = Vec::new();
        for listener in &listeners {
            streams.push(process::accept(listener, &mut child)?);
        }
        let mut streams = streams.into_iter();
        let mut next = || streams.next().context("one socket too few");
        Ok(Self {
            qmp: Qmp::new(next()?)?,
            control: BufReader::new(next()?),
            ports: vec![Some(next()?), Some(next()?)],
            child,
            folder,
        })
    }

    /// Copies what comes from port `number` to `sink` until QEMU ends.
    fn pump(
        &mut self,
        number: usize,
        mut sink: impl Write + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let mut stream = self.ports[number - 2].take().context("pumped already")?;
        Ok(thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if sink
                    .write_all(&buffer[..length])
                    .and_then(|()| sink.flush())
                    .is_err()
                {
                    return;
                }
            }
        }))
    }

    /// The end of what the guest's kernel said.
    fn console(&self) -> String {
        let text = fs::read(self.folder.path().join("console")).unwrap_or_default();
        let tail = text.len().saturating_sub(4000);
        format!(
            "--- the guest's console ends with\n{}",
            String::from_utf8_lossy(&text[tail..])
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
