//! An appliance to test with: installed, enrolled, with images to boot guests from.
//!
//! ```text
//!   Lab::prepared()   resumes one that was saved in that state: a second, and each test has its own
//!   Lab::direct(disk) boots an installed disk with kernel and initramfs handed over: quick, no firmware
//!   Lab::firmware()   the whole chain: UEFI, boot loader, UKI
//! ```
//! A test's machines belong to its `Lab`, so that a failure can show what they said before they are switched off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::client::{Client, Fingerprint};
use api::images::{ImageCreate, ImageFormat, ImageKind};
use api::networks::{NetworkCreate, NetworkKind};
use api::users::{Secret, SessionCreate, SetupRequest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::accel::{Accelerator, KERNEL_ARGUMENTS};
use crate::agent::client::Agent;
use crate::artifacts::{GuestKernel, cache, dist, repository};
use crate::console::Facts;
use crate::expect::{answered, secs};
use crate::initramfs::Initramfs;
use crate::machine::{Boot, Machine, MachineConfig, SavedState};
use crate::media;
use crate::modules::Modules;
use crate::{needs, runner};

/// Raft's timings where the CPU is emulated and shared: the defaults would call a busy host a dead one.
const RAFT_ARGUMENTS: &str = "lqx.heartbeat_ms=500 lqx.election_ms=5000";
/// What our helper needs loaded before the product's own module loading has run.
const HELPER_MODULES: &[&str] = &["virtio_pci", "virtio_console"];
/// The names of what a prepared appliance has.
pub const KERNEL: &str = "guest-kernel";
/// The guest's initramfs.
pub const INITRD: &str = "guest-initrd";
/// An isolated network with DHCP.
pub const NETWORK: &str = "lab";
/// Its subnet.
pub const SUBNET: &str = "10.77.0.0/24";
/// The first administrator of every test appliance.
pub const ADMIN: &str = "admin";
/// Long enough for anything that boots on a busy machine.
pub const BOOT: Duration = secs(420);

/// One test's machines and files.
pub struct Lab {
    folder: PathBuf,
    appliances: Vec<Appliance>,
}

/// How to talk to an appliance that is enrolled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Access {
    /// Its certificate's SHA-256.
    pub fingerprint: String,
    /// The first administrator's password.
    pub password: String,
    /// A session of theirs.
    pub token: String,
}

/// A running appliance.
pub struct Appliance {
    /// The machine.
    pub machine: Machine,
    /// The API, as the first administrator.
    pub api: Client,
    /// How that was come by.
    pub access: Access,
    agent: Option<Agent>,
}

/// Runs a lab test: says what is missing instead of running, and on failure what the machines said.
pub fn lab_test(name: &str, body: impl AsyncFnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    if let Err(missing) = all_there() {
        if std::env::var_os("LQX_LAB_REQUIRED").is_some() {
            return Err(missing.context(format!("{name} cannot run")));
        }
        needs::skip(name, &format!("{missing:#}"));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut lab = Lab::new(name)?;
        let outcome = match tokio::time::timeout(secs(900), body(&mut lab)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("not done after 15 minutes")),
        };
        if outcome.is_err() {
            lab.diagnose().await;
        }
        outcome
    })
}

/// Everything any lab test needs, or what is missing.
fn all_there() -> Result<()> {
    for program in ["qemu-system-x86_64", "setpriv", "mkfs.vfat", "mcopy"] {
        needs::program(program)
            .with_context(|| format!("`{program}` is not installed: `make deps`"))?;
    }
    for file in [
        "vmlinux",
        "initrd.lz4",
        "limiquantix.iso",
        "limiquantix.raw",
        "guest/vmlinuz",
        "guest/initrd",
    ] {
        dist(file)?;
    }
    Ok(())
}

impl Lab {
    /// An empty lab with a fresh folder.
    pub fn new(name: &str) -> Result<Self> {
        let folder = repository().join("target/lab").join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(Self {
            folder,
            appliances: Vec::new(),
        })
    }

    /// A path in this test's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The test's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The appliance.
    pub fn appliance(&mut self) -> Result<&mut Appliance> {
        self.appliances.last_mut().context("no appliance yet")
    }

    /// A saved appliance, resumed: enrolled, with the guest's images uploaded and a network. Made once, when there is none yet.
    pub async fn prepared(&mut self) -> Result<&mut Appliance> {
        let saved = Prepared::get()
            .await
            .context("preparing the appliance that tests resume")?;
        let disk = self.file("disk.raw");
        media::copy(&saved.file("disk.raw"), &disk)?;
        let mut config = direct(&saved.folder, &disk)?;
        config.resume = Some(SavedState {
            ram: saved.file("ram"),
            devices: saved.file("devices"),
        });
        let machine = config.start(&self.folder)?;
        let access: Access = serde_json::from_slice(&fs::read(saved.file("access.json"))?)?;
        let appliance = Appliance::known(machine, access)?;
        appliance.ready(secs(60)).await?;
        self.keep(appliance)
    }

    /// Boots `disk`, which an enrolled appliance was running from, and waits for its API.
    pub async fn boot_again(&mut self, disk: &Path, access: Access) -> Result<&mut Appliance> {
        let machine = direct(&self.folder, disk)?.start(&self.folder)?;
        let appliance = Appliance::known(machine, access)?;
        appliance.ready(BOOT).await?;
        self.keep(appliance)
    }

    /// Cuts the power of the appliance and takes it out of the lab; how to talk to it when it is back.
    pub fn cut_power(&mut self) -> Result<Access> {
        let mut appliance = self.appliances.pop().context("no appliance yet")?;
        appliance.machine.cut_power()?;
        Ok(appliance.access)
    }

    /// Presses the power button of the appliance, waits until it is off, and takes it out of the lab.
    pub fn press_power_button(&mut self, within: Duration) -> Result<Access> {
        let machine = &mut self.appliance()?.machine;
        machine
            .qmp()
            .call("system_powerdown", serde_json::json!({}))?;
        machine.wait_off(within)?;
        let appliance = self.appliances.pop().context("no appliance yet")?;
        Ok(appliance.access)
    }

    /// Puts an appliance into the lab.
    pub fn keep(&mut self, appliance: Appliance) -> Result<&mut Appliance> {
        self.appliances.push(appliance);
        self.appliance()
    }

    /// Prints what the machines said and what their daemons logged.
    async fn diagnose(&mut self) {
        for appliance in &mut self.appliances {
            match appliance.agent().and_then(Agent::kernel_log) {
                Ok(log) => {
                    let lines: Vec<&str> = log.lines().collect();
                    let tail = &lines[lines.len().saturating_sub(30)..];
                    println!("--- its kernel said\n{}", tail.join("\n"));
                }
                Err(error) => println!("--- its kernel's log cannot be had: {error:#}"),
            }
            let machine = &appliance.machine;
            println!(
                "--- machine `{}` ({}) said, at the end",
                machine.name(),
                machine.accelerator()
            );
            println!(
                "{}\n--- its screen\n{}",
                machine.serial().tail(),
                machine.serial().screen()
            );
            match tokio::time::timeout(secs(20), appliance.api.system_logs(None)).await {
                Ok(Ok(lines)) => {
                    println!("--- its daemon logged");
                    for line in lines.items.iter().rev().take(100).rev() {
                        println!("{} {}", line.level, line.message);
                    }
                }
                Ok(Err(error)) => println!("--- its daemon's log cannot be had: {error}"),
                Err(_) => println!("--- its daemon does not answer"),
            }
        }
        println!("--- logs are in {}", self.folder.display());
    }
}

impl Appliance {
    /// An appliance that was enrolled before.
    pub fn known(machine: Machine, access: Access) -> Result<Self> {
        let api = client(&machine, &access.fingerprint)?.with_token(Secret(access.token.clone()));
        Ok(Self {
            machine,
            api,
            access,
            agent: None,
        })
    }

    /// Enrols the first administrator of a fresh appliance with what its screen shows, and signs in.
    pub async fn enrol(mut machine: Machine, within: Duration) -> Result<Self> {
        let facts = Facts::wait(&mut machine, within, |_| ())?;
        let api = client(&machine, &facts.fingerprint)?;
        let password = "correct horse battery".to_owned();
        let request = SetupRequest {
            token: Secret(facts.setup_token),
            name: ADMIN.parse()?,
            password: Secret(password.clone()),
        };
        healthy(&machine, &facts.fingerprint, secs(120)).await?;
        api.setup_create(&request)
            .await
            .context("enrolling the first administrator")?;
        let who = SessionCreate {
            name: ADMIN.parse()?,
            password: Secret(password.clone()),
        };
        let session = api.session_create(&who).await.context("signing in")?;
        Self::known(
            machine,
            Access {
                fingerprint: facts.fingerprint,
                password,
                token: session.secret.0,
            },
        )
    }

    /// Waits until writes are agreed.
    pub async fn ready(&self, within: Duration) -> Result<()> {
        healthy(&self.machine, &self.access.fingerprint, within).await
    }

    /// A client without a token, or with another pin.
    pub fn stranger(&self, fingerprint: Option<&str>) -> Result<Client> {
        client(
            &self.machine,
            fingerprint.unwrap_or(&self.access.fingerprint),
        )
    }

    /// The address of its API.
    pub fn address(&self) -> Result<String> {
        Ok(format!("127.0.0.1:{}", self.machine.port(443)?))
    }

    /// Our helper inside.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        if self.agent.is_none() {
            self.agent = Some(self.machine.agent()?);
        }
        self.agent.as_mut().context("just made")
    }

    /// Uploads a file as an image.
    pub async fn upload(&self, name: &str, kind: ImageKind, file: &Path) -> Result<()> {
        self.upload_as(name, kind, ImageFormat::Raw, file).await
    }

    /// Uploads a file of another format than raw.
    pub async fn upload_as(
        &self,
        name: &str,
        kind: ImageKind,
        format: ImageFormat,
        file: &Path,
    ) -> Result<()> {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let size_bytes = bytes.len() as u64;
        let request = ImageCreate {
            name: name.parse()?,
            kind,
            format,
            size_bytes,
            sha256: hexadecimal(&Sha256::digest(&bytes)),
        };
        let made = self
            .api
            .image_create(&request)
            .await
            .with_context(|| format!("making image {name}"))?;
        self.api
            .image_upload(
                made.object.id,
                std::io::Cursor::new(bytes),
                size_bytes,
                None,
            )
            .await
            .with_context(|| format!("uploading image {name}"))?;
        Ok(())
    }
}

fn client(machine: &Machine, fingerprint: &str) -> Result<Client> {
    let pinned: Fingerprint = fingerprint.parse()?;
    Ok(Client::https(
        &format!("127.0.0.1:{}", machine.port(443)?),
        pinned,
    )?)
}

/// Waits until writes are agreed.
async fn healthy(machine: &Machine, fingerprint: &str, within: Duration) -> Result<()> {
    answered("the API is ready", within, || {
        let client = client(machine, fingerprint);
        async move { Ok(Some(client?.health_get().await?.ready).filter(|ready| *ready)) }
    })
    .await
    .map(drop)
}

/// As checksums are written.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The configuration of a machine that boots an installed disk with kernel and initramfs handed over, and our helper.
/// `folder` gets the joined initramfs.
pub fn direct(folder: &Path, disk: &Path) -> Result<MachineConfig> {
    let initrd = folder.join("initrd");
    if !initrd.is_file() {
        // The kernel unpacks any number of archives, one after another; ours is plain and goes first, because the
        // compressed form has no end that something could follow.
        let mut joined = helper_archive()?;
        joined.extend(fs::read(dist("initrd.lz4")?)?);
        fs::write(&initrd, joined)?;
    }
    let install = media::disk_guid(disk)?;
    let boot = Boot::Direct {
        kernel: dist("vmlinux")?,
        initrd,
        arguments: format!(
            "{} rdinit=/lab-agent lqx.agent=helper lqx.install={install} {RAFT_ARGUMENTS} {KERNEL_ARGUMENTS}",
            image::uki::COMMAND_LINE
        ),
    };
    let mut config = MachineConfig::new("appliance", boot).disk(disk);
    config.agent = true;
    Ok(config)
}

fn helper_archive() -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for folder in ["dev", "lab", "lab/dev", "lab/modules", "lab/proc"] {
        archive.dir(folder)?;
    }
    archive.console()?;
    archive.copy("lab-agent", 0o755, &runner::agent_binary()?)?;
    let modules = Modules::read(&GuestKernel::find()?.modules)?;
    for (number, file) in modules.closure(HELPER_MODULES).iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.copy(&format!("lab/modules/{number:03}-{name}"), 0o644, file)?;
    }
    archive.finish()
}

/// The appliance that tests resume.
struct Prepared {
    folder: PathBuf,
}

impl Prepared {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    async fn get() -> Result<Self> {
        let top = cache().join("lab");
        fs::create_dir_all(&top)?;
        let lock = fs::File::create(top.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("waiting for another test")?;
        let prepared = Self {
            folder: top.join(key()?),
        };
        if !prepared.file("access.json").is_file() {
            for old in fs::read_dir(&top)?
                .flatten()
                .filter(|entry| entry.path().is_dir())
            {
                let _ = fs::remove_dir_all(old.path());
            }
            prepared.make().await?;
        }
        Ok(prepared)
    }

    async fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        let disk = self.file("disk.raw");
        media::copy(&dist("limiquantix.raw")?, &disk)?;
        let mut config = direct(&self.folder, &disk)?;
        let memory = config.memory_mib;
        fs::File::create(self.file("ram"))?.set_len(memory << 20)?;
        config.ram_file = Some(self.file("ram"));
        let mut appliance = Appliance::enrol(config.start(&self.folder)?, BOOT).await?;
        appliance
            .upload(KERNEL, ImageKind::Kernel, &dist("guest/vmlinuz")?)
            .await?;
        appliance
            .upload(INITRD, ImageKind::Initrd, &dist("guest/initrd")?)
            .await?;
        let kind = NetworkKind::Isolated {
            subnet: SUBNET.to_owned(),
            dhcp: true,
        };
        let network = appliance
            .api
            .network_create(&NetworkCreate {
                name: NETWORK.parse()?,
                kind,
            })
            .await?;
        appliance.api.task_wait(network.task, secs(60)).await?;
        // The helper must have its port open before the save: a resumed machine goes on from there.
        if appliance.agent()?.processes()?.is_empty() {
            bail!("the helper sees no processes");
        }
        let access = serde_json::to_vec(&appliance.access)?;
        appliance.machine.save(&self.file("devices"))?;
        fs::write(self.file("access.json"), access)?;
        Ok(())
    }
}

/// What a saved appliance depends on.
fn key() -> Result<String> {
    let mut hash = Sha256::new();
    let qemu = std::process::Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()?;
    hash.update(&qemu.stdout);
    let agent = runner::agent_binary()?;
    let files = [
        "vmlinux",
        "initrd.lz4",
        "limiquantix.raw",
        "guest/vmlinuz",
        "guest/initrd",
    ];
    for path in files.iter().map(|name| dist(name)).chain([Ok(agent)]) {
        let path = path?;
        let about = fs::metadata(&path)?;
        hash.update(format!("{path:?} {} {:?}", about.len(), about.modified()?));
    }
    hash.update(format!(
        "{:?} {RAFT_ARGUMENTS} {KERNEL_ARGUMENTS}",
        Accelerator::detect()?
    ));
    Ok(hexadecimal(&hash.finalize()[..8]))
}
