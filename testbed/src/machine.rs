//! One QEMU: what is plugged into it, how it boots, its power switch.
//!
//! ```text
//!   MachineConfig ── start ──► Machine ─┬─ serial()   what it says on ttyS0
//!                                       ├─ agent()    our helper inside, when this boot brings one
//!                                       ├─ port(443)  where its API answers on this machine
//!                                       └─ cut_power() / Drop
//! ```
//! A machine has no way to anything but this program: its network is QEMU's own, with single ports let in.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::accel::Accelerator;
use crate::agent::client::Agent;
use crate::media;
use crate::process;
use crate::qemu;
use crate::qmp::Qmp;
use crate::serial::Serial;

/// UEFI firmware of the `ovmf` package.
pub(crate) const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The variables it begins with.
pub(crate) const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// How a machine comes up.
#[derive(Debug, Clone)]
pub enum Boot {
    /// The kernel is handed over by QEMU: several times quicker than firmware, for everything that is not about the boot chain.
    Direct {
        /// An ELF kernel.
        kernel: PathBuf,
        /// One archive, already put together.
        initrd: PathBuf,
        /// The command line.
        arguments: String,
    },
    /// UEFI, from the first medium that boots: disks before the CD.
    Firmware,
}

/// A disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The raw file.
    pub path: PathBuf,
    /// Its serial number.
    pub serial: String,
}

/// What its disks, its medium and its network card are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardware {
    /// virtio disks and network, a SATA CD: a virtual machine, and the quickest.
    Virtual,
    /// NVMe disks, the medium as a USB stick, an Intel 82574 network card: a server.
    Server,
    /// SATA disks and CD, the seed as a USB stick, an Intel 82540 network card: an older one.
    Older,
}

impl Hardware {
    /// QEMU's device for a disk.
    fn disk(self, number: usize) -> String {
        match self {
            Self::Virtual => "virtio-blk-pci".to_owned(),
            Self::Server => "nvme".to_owned(),
            Self::Older => format!("ide-hd,bus=ide.{number}"),
        }
    }

    /// QEMU's devices for the installer medium, and for one with a seed.
    fn media(self) -> (&'static str, &'static str) {
        match self {
            Self::Virtual => ("ide-cd,bus=ide.5", "virtio-blk-pci"),
            Self::Server => ("usb-storage,bus=usb.0", "usb-storage,bus=usb.0"),
            Self::Older => ("ide-cd,bus=ide.5", "usb-storage,bus=usb.0"),
        }
    }

    /// QEMU's network card.
    fn network(self) -> &'static str {
        match self {
            Self::Virtual => "virtio-net-pci",
            Self::Server => "e1000e",
            Self::Older => "e1000",
        }
    }
}

/// A saved machine to continue from.
#[derive(Debug, Clone)]
pub struct SavedState {
    /// Its memory.
    pub ram: PathBuf,
    /// Its devices.
    pub devices: PathBuf,
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// For messages and file names.
    pub name: String,
    /// Memory.
    pub memory_mib: u64,
    /// CPUs.
    pub cpus: u32,
    /// How it boots.
    pub boot: Boot,
    /// Which kinds of devices it has.
    pub hardware: Hardware,
    /// Disks in order.
    pub disks: Vec<Disk>,
    /// The ISO, as a CD or a stick.
    pub medium: Option<PathBuf>,
    /// Firmware tries it before the disks.
    pub medium_first: bool,
    /// A raw medium with a seed.
    pub seed: Option<PathBuf>,
    /// TCP ports of the machine to be reached from here.
    pub ports: Vec<u16>,
    /// The first of them is reached by this port of ours when it is free; else by any.
    pub preferred_port: Option<u16>,
    /// May open connections to the outside.
    pub outside: bool,
    /// A reset ends it instead of booting it again.
    pub no_reboot: bool,
    /// This boot brings our helper.
    pub agent: bool,
    /// Memory in this file, shared, so that the machine can be saved.
    pub ram_file: Option<PathBuf>,
    /// Continue from here instead of booting.
    pub resume: Option<SavedState>,
}

impl MachineConfig {
    /// A machine of 2 GiB and one CPU with nothing plugged in but a network card that lets port 443 in.
    pub fn new(name: &str, boot: Boot) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 2048,
            cpus: 1,
            boot,
            hardware: Hardware::Virtual,
            disks: Vec::new(),
            medium: None,
            medium_first: false,
            seed: None,
            ports: vec![443],
            preferred_port: None,
            outside: false,
            no_reboot: false,
            agent: false,
            ram_file: None,
            resume: None,
        }
    }

    /// With one more disk.
    #[must_use]
    pub fn disk(mut self, path: &Path) -> Self {
        let serial = format!("lab-disk-{}", self.disks.len());
        self.disks.push(Disk {
            path: path.to_owned(),
            serial,
        });
        self
    }

    /// Starts it. Its files (sockets, the serial log) are in `folder`.
    pub fn start(self, folder: &Path) -> Result<Machine> {
        Machine::start(self, folder)
    }
}

/// A running machine. Dropping it cuts its power.
pub struct Machine {
    config: MachineConfig,
    accelerator: Accelerator,
    child: Child,
    qmp: Qmp,
    serial: Serial,
    agent: Option<UnixStream>,
    forwards: Vec<(u16, u16)>,
    log: PathBuf,
    started: Instant,
    _sockets: tempfile::TempDir,
}

impl Machine {
    fn start(config: MachineConfig, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let accelerator = Accelerator::detect()?;
        // Socket paths have a limit of 107 bytes, which a path below a repository may exceed.
        let sockets = tempfile::Builder::new().prefix("lab-").tempdir()?;
        let mut command = process::mortal(qemu::program());
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-M", "q35,vmport=off,smm=off", "-name", &config.name]);
        command.args(accelerator.arguments());
        command.args(["-smp", &config.cpus.to_string()]);
        command.args(["-rtc", "base=utc", "-device", "virtio-rng-pci"]);
        command.args(memory_arguments(&config));
        command.args(boot_arguments(&config, folder)?);
        command.args(disk_arguments(&config));
        let forwards = free_ports(&config.ports, config.preferred_port)?;
        command.args(network_arguments(
            config.hardware,
            config.outside,
            &forwards,
        ));
        if config.no_reboot {
            command.arg("-no-reboot");
        }
        if config.resume.is_some() {
            command.args(["-incoming", "defer", "-S"]);
        }

        let mut names = vec!["qmp", "serial"];
        command.args([
            "-mon",
            "chardev=qmp,mode=control",
            "-serial",
            "chardev:serial",
        ]);
        if config.agent {
            names.push("agent");
            command.args(["-device", "virtio-serial-pci,id=ports"]);
            command.args(["-device", "virtserialport,bus=ports.0,nr=1,chardev=agent"]);
        }
        let mut listeners = Vec::new();
        for name in &names {
            let path = sockets.path().join(name);
            listeners.push(UnixListener::bind(&path)?);
            command.args([
                "-chardev",
                &format!("socket,id={name},path={}", path.display()),
            ]);
        }
        let errors = folder.join(format!("{}.qemu.log", config.name));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&errors)?);
        let started = Instant::now();
        let mut child = process::spawn(command)?;
        let mut streams = Vec::new();
        for listener in &listeners {
            let stream = process::accept(listener, &mut child).with_context(|| {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                format!("starting machine `{}`: QEMU said: {said}", config.name)
            });
            streams.push(stream?);
        }
        let mut streams = streams.into_iter();
        let mut next = || streams.next().context("one socket too few");
        let log = folder.join(format!("{}.serial.log", config.name));
        let mut machine = Self {
            qmp: Qmp::new(next()?)?,
            serial: Serial::new(next()?, &log)?,
            agent: if config.agent { Some(next()?) } else { None },
            accelerator,
            child,
            forwards,
            log,
            started,
            config,
            _sockets: sockets,
        };
        if let Some(state) = machine.config.resume.clone() {
            machine
                .qmp
                .load_devices(&state.devices.display().to_string())
                .context("resuming the saved machine")?;
        }
        Ok(machine)
    }

    /// What it says.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Emulated or not.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where what it says is kept.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How long ago it was switched on.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The port of this machine that leads to `port` of that one.
    pub fn port(&self, port: u16) -> Result<u16> {
        let forward = self.forwards.iter().find(|(theirs, _)| *theirs == port);
        Ok(forward
            .with_context(|| format!("port {port} is not let in"))?
            .1)
    }

    /// Our helper inside. Only once: it has one line to us.
    pub fn agent(&mut self) -> Result<Agent> {
        let stream = self
            .agent
            .take()
            .context("this machine was started without a helper, or it is in use")?;
        Agent::connect(stream)
    }

    /// QEMU's own control.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Stops it for good and saves its devices to `file`; its memory is in the configured file.
    pub fn save(mut self, file: &Path) -> Result<()> {
        self.qmp.call("stop", serde_json::json!({}))?;
        self.qmp.save_devices(&file.display().to_string())?;
        self.cut_power()
    }

    /// Waits until the machine is off by itself.
    pub fn wait_off(&mut self, within: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!(
                    "machine `{}` did not switch off\n{}",
                    self.config.name,
                    self.serial.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// It is still on.
    pub fn is_on(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Pulls the plug.
    pub fn cut_power(&mut self) -> Result<()> {
        let _ = self.child.kill();
        self.child.wait().context("waiting for QEMU to end")?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- machine `{}` ({}, log {}) ended with\n{}\n--- its screen\n{}",
                self.config.name,
                self.accelerator,
                self.log.display(),
                self.serial.tail(),
                self.serial.screen()
            );
        }
    }
}

fn memory_arguments(config: &MachineConfig) -> Vec<String> {
    let memory = config.memory_mib;
    let mut arguments = vec!["-m".to_owned(), format!("{memory}M")];
    let file = match (&config.resume, &config.ram_file) {
        (Some(state), _) => Some((&state.ram, "off")),
        (None, Some(file)) => Some((file, "on")),
        (None, None) => None,
    };
    if let Some((file, share)) = file {
        let file = file.display();
        arguments.extend(["-machine", "memory-backend=ram", "-object"].map(str::to_owned));
        arguments.push(format!(
            "memory-backend-file,id=ram,size={memory}M,mem-path={file},share={share}"
        ));
    }
    arguments
}

fn boot_arguments(config: &MachineConfig, folder: &Path) -> Result<Vec<String>> {
    Ok(match &config.boot {
        Boot::Direct {
            kernel,
            initrd,
            arguments,
        } => vec![
            "-kernel".to_owned(),
            kernel.display().to_string(),
            "-initrd".to_owned(),
            initrd.display().to_string(),
            "-append".to_owned(),
            arguments.clone(),
        ],
        Boot::Firmware => {
            // A variable store remembers boot entries of other machines; each machine has its own, kept over its restarts.
            let variables = folder.join(format!("{}.efivars.fd", config.name));
            if !variables.is_file() {
                media::copy(Path::new(FIRMWARE_VARIABLES), &variables)
                    .context("the UEFI firmware (package ovmf)")?;
            }
            vec![
                "-drive".to_owned(),
                format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE_CODE}"),
                "-drive".to_owned(),
                format!("if=pflash,unit=1,format=raw,file={}", variables.display()),
            ]
        }
    })
}

/// The plug is pulled by killing QEMU, which leaves what the machine has written in this machine's memory, flushed or not. So
/// flushing for real would make tests slower and no sharper (`cache=unsafe`).
fn disk_arguments(config: &MachineConfig) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |drive: String, device: String| {
        arguments.extend(["-drive".to_owned(), drive, "-device".to_owned(), device]);
    };
    let (medium, seed) = config.hardware.media();
    for (number, disk) in config.disks.iter().enumerate() {
        let path = disk.path.display();
        add(
            format!("if=none,id=disk{number},format=raw,discard=unmap,cache=unsafe,file={path}"),
            format!(
                "{},drive=disk{number},serial={},bootindex={}",
                config.hardware.disk(number),
                disk.serial,
                number + 1
            ),
        );
    }
    if let Some(path) = &config.seed {
        let path = path.display();
        add(
            format!("if=none,id=seed,format=raw,readonly=on,file={path}"),
            format!("{seed},drive=seed,serial=lab-seed"),
        );
    }
    if let Some(path) = &config.medium {
        let path = path.display();
        let index = if config.medium_first { 0 } else { 90 };
        add(
            format!("if=none,id=medium,format=raw,readonly=on,file={path}"),
            format!("{medium},drive=medium,serial=lab-medium,bootindex={index}"),
        );
    }
    if config.hardware != Hardware::Virtual {
        // Before what is plugged into it.
        arguments.splice(0..0, ["-device", "qemu-xhci,id=usb"].map(str::to_owned));
    }
    arguments
}

fn network_arguments(hardware: Hardware, outside: bool, forwards: &[(u16, u16)]) -> Vec<String> {
    let restrict = if outside { "off" } else { "on" };
    let mut net = format!("user,id=net,restrict={restrict}");
    for (theirs, ours) in forwards {
        net.push_str(&format!(",hostfwd=tcp:127.0.0.1:{ours}-:{theirs}"));
    }
    let card = hardware.network();
    let device = format!("{card},netdev=net,mac=52:54:00:6c:71:78,romfile=");
    ["-netdev", &net, "-device", &device]
        .map(str::to_owned)
        .to_vec()
}

/// A free port of this machine for each of `theirs`.
fn free_ports(theirs: &[u16], mut preferred: Option<u16>) -> Result<Vec<(u16, u16)>> {
    // All are held until all are found, so that none is given twice.
    let mut held = Vec::new();
    for port in theirs {
        let wanted = preferred
            .take()
            .and_then(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
        let listener = match wanted {
            Some(listener) => listener,
            None => {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?
            }
        };
        held.push((*port, listener));
    }
    held.iter()
        .map(|(port, listener)| Ok((*port, listener.local_addr()?.port())))
        .collect()
}
