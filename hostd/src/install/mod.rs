//! Installing this operating system onto a disk.
//!
//! ```text
//!            start(request)                        each step writes, syncs, reports
//!  Waiting ───────► Check ─► Partition ─► Format ─► Copy ─► Verify ─► Configure ─► Activate ─► Reboot ─► Done
//!     ▲               │          │           │        │        │          │            │          │
//!     │               └──────────┴───────────┴────────┴───┬────┴──────────┴────────────┴──────────┘
//!     └─────────────── start(request) ◄──────────── Failed { step, error }
//! ```
//! Deciding and doing are apart: `consent` says which disk and whether it may be overwritten, `plan` what it will
//! be, both pure; `perform` does it. `medium` finds the UKI, `seed` the answers. Start reading there.
//!
//! This module knows no HTTP and no cluster; the API's `InstallerApi` and the console stand on [`Installer`].

pub mod consent;
pub mod disk;
pub mod esp;
pub mod fat;
pub mod fetch;
pub mod iso;
pub mod medium;
pub mod perform;
pub mod plan;
pub mod seed;
pub mod uki;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::error::{ApiError, ErrorCode};
use api::ids::HostId;
use api::install::{InstallPhase, InstallRequest, InstallStatus, InstallStep};
use api::names::Name;
use api::system::PowerAction;
use api::units::Percent;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use self::consent::{Candidate, choose};
use self::disk::{Disk, RealDisk, is_free};
use self::medium::Source;
use self::perform::{WRITING_STEPS, Work};
use self::plan::Plan;
use self::seed::Seed;
use crate::config::HostConfig;
use crate::host::blocks::{self, Block};
use crate::host::cmdline::Cmdline;
use crate::host::content::Content;
use crate::host::discover;
use crate::host::inventory;
use crate::host::power::Power;
use crate::host::read_at::Device;
use crate::host::{Roots, text};
use crate::http::InstallerApi;
use crate::report::chain;

/// The boot loader, in the image.
pub const LOADER: &str = "/usr/lib/limiquantix/systemd-bootx64.efi";
/// How long a seed's disk and the medium may take to appear, and how often it is looked for them.
const MEDIA_WAIT: Duration = Duration::from_secs(15);
const MEDIA_POLL: Duration = Duration::from_millis(500);
/// Longest UKI taken from a URL.
const UKI_LEN_MAX: u64 = 512 << 20;

/// What the installer works with.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Where the kernel shows itself.
    pub roots: Roots,
    /// The version that runs, and is installed.
    pub version: String,
    /// What the boot loader said.
    pub cmdline: Cmdline,
    /// The boot loader's file.
    pub loader: PathBuf,
    /// For a downloaded UKI and the state partition's first content.
    pub scratch: PathBuf,
    /// Restarts when done.
    pub power: Power,
}

impl Environment {
    /// This machine.
    pub fn of_machine() -> Self {
        let roots = Roots::default();
        Self {
            cmdline: Cmdline::of_kernel(&roots),
            roots,
            version: crate::host::version(),
            loader: PathBuf::from(LOADER),
            scratch: PathBuf::from("/run/lqx/install"),
            power: Power::of_machine(),
        }
    }
}

/// The installer. Clones share it.
#[derive(Debug, Clone)]
pub struct Installer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    environment: Environment,
    phase: watch::Sender<InstallPhase>,
    /// Held from `start`'s check to the end of the install: there is one at a time.
    running: Arc<Mutex<bool>>,
}

impl Installer {
    /// Waiting for an answer.
    pub fn new(environment: Environment) -> Self {
        Self {
            inner: Arc::new(Inner {
                environment,
                phase: watch::Sender::new(InstallPhase::Waiting),
                running: Arc::default(),
            }),
        }
    }

    /// Version, disks, phase. Reads the edges of every disk.
    pub async fn status(&self) -> InstallStatus {
        let inner = self.inner.clone();
        let disks = tokio::task::spawn_blocking(move || inventory::disks(&inner.environment.roots));
        InstallStatus {
            version: self.inner.environment.version.clone(),
            disks: disks.await.unwrap_or_default(),
            phase: self.inner.phase.borrow().clone(),
        }
    }

    /// The phase, as it changes.
    pub fn watch(&self) -> watch::Receiver<InstallPhase> {
        self.inner.phase.subscribe()
    }

    /// Checks everything; then, unless it is a dry run, installs in the background and restarts the machine.
    /// An error means that nothing was written.
    pub async fn start(&self, request: InstallRequest) -> Result<(), ApiError> {
        let claim = Claim::take(&self.inner.running)?;
        let dry_run = request.dry_run;
        if !dry_run {
            self.inner
                .report(InstallStep::Check, 0, "checking medium and disk");
        }
        let checked = self.inner.clone().check(request).await;
        let ready = match checked {
            Ok(ready) => ready,
            Err(error) => {
                if !dry_run {
                    self.inner.fail(InstallStep::Check, &error);
                }
                return Err(error);
            }
        };
        if dry_run {
            return Ok(());
        }
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || {
            let _claim = claim;
            inner.install(ready);
        });
        Ok(())
    }

    /// Installs as a seed says and waits for the end.
    pub async fn unattended(&self, seed: Seed) -> Result<(), ApiError> {
        let request = seed.into_request();
        let until = tokio::time::Instant::now() + MEDIA_WAIT;
        loop {
            match self.start(request.clone()).await {
                // Disk or medium: USB takes its time after power-on, and here nobody presses a key again.
                Err(error)
                    if error.code == ErrorCode::NotFound && tokio::time::Instant::now() < until =>
                {
                    tracing::info!(cause = %error.message, "not there yet");
                    tokio::time::sleep(MEDIA_POLL).await;
                }
                started => break started?,
            }
        }
        let mut phase = self.watch();
        let ended = phase
            .wait_for(|phase| matches!(phase, InstallPhase::Done | InstallPhase::Failed { .. }))
            .await;
        match ended.as_deref() {
            Ok(InstallPhase::Failed { error, .. }) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Shows a failure that happened before an install could be started, for instance of the seed.
    pub fn fail(&self, error: &ApiError) {
        self.inner.fail(InstallStep::Check, error);
    }
}

impl InstallerApi for Installer {
    fn status(&self) -> BoxFuture<'_, Result<InstallStatus, ApiError>> {
        Box::pin(async { Ok(Installer::status(self).await) })
    }

    fn start(&self, request: InstallRequest) -> BoxFuture<'_, Result<InstallStatus, ApiError>> {
        Box::pin(async {
            Installer::start(self, request).await?;
            Ok(Installer::status(self).await)
        })
    }
}

/// The right to install.
#[derive(Debug)]
struct Claim(Arc<Mutex<bool>>);

impl Claim {
    fn take(running: &Arc<Mutex<bool>>) -> Result<Self, ApiError> {
        let mut taken = running.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return Err(ApiError::new(
                ErrorCode::WrongPhase,
                "an install is running",
                "`GET /install` shows its progress",
            ));
        }
        *taken = true;
        Ok(Self(running.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// Everything that was checked.
struct Ready {
    plan: Plan,
    disk: RealDisk,
    source: Source,
    loader: Vec<u8>,
}

impl Inner {
    async fn check(self: Arc<Self>, request: InstallRequest) -> Result<Ready, ApiError> {
        // Consent first: it is quick, and the most likely mistake.
        let inner = self.clone();
        let early = request.clone();
        blocking(move || inner.target(&early, &[]).map(drop)).await?;
        let downloaded = self.download().await?;
        blocking(move || self.ready(&request, downloaded)).await
    }

    async fn download(&self) -> Result<Option<PathBuf>, ApiError> {
        let Some(url) = &self.environment.cmdline.uki else {
            return Ok(None);
        };
        let failed = |error: &dyn std::error::Error| {
            ApiError::new(
                ErrorCode::Unavailable,
                format!("could not download the UKI {url}: {}", chain(error)),
                "check `lqx.uki=` and the server",
            )
        };
        let path = self.environment.scratch.join("limiquantix.efi");
        std::fs::create_dir_all(&self.environment.scratch).map_err(|e| failed(&e))?;
        let mut file = std::fs::File::create(&path).map_err(|e| failed(&e))?;
        let sha256 = self.environment.cmdline.uki_sha256.as_deref();
        fetch::fetch(url, sha256, UKI_LEN_MAX, &mut file)
            .await
            .map_err(|e| failed(&e))?;
        Ok(Some(path))
    }

    fn ready(
        &self,
        request: &InstallRequest,
        downloaded: Option<PathBuf>,
    ) -> Result<Ready, ApiError> {
        let source = self.source(downloaded)?;
        let media: Vec<String> = source.disk.iter().cloned().collect();
        let block = self.target(request, &media)?;
        let internal = |what: &str, error: &dyn std::error::Error| {
            ApiError::new(
                ErrorCode::Internal,
                format!("{what}: {}", chain(error)),
                "nothing was written",
            )
        };
        let loader = std::fs::read(&self.environment.loader)
            .map_err(|e| internal("could not read the boot loader from the image", &e))?;
        let id = Uuid::new_v4();
        let config = HostConfig {
            install: id,
            host: HostId::mint(),
            name: request
                .hostname
                .clone()
                .unwrap_or_else(|| self.default_name()),
            network: request.network.clone().unwrap_or_default(),
        };
        crate::network::address::validate(&config.network)?;
        let ids = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
        let plan = Plan::new(block.len, block.sector, config, &source.version, ids)
            .map_err(|e| internal("could not lay out the disk", &e))?;
        let disk = RealDisk::open(&block.path, block.sector)
            .map_err(|e| internal("could not open the disk for writing", &e))?;
        if crate::host::read_at::ReadAt::len(&disk) != block.len {
            let error = std::io::Error::other("its length changed");
            return Err(internal("could not open the disk for writing", &error));
        }
        Ok(Ready {
            plan,
            disk,
            source,
            loader,
        })
    }

    fn source(&self, downloaded: Option<PathBuf>) -> Result<Source, ApiError> {
        let hint = "boot from the installer medium, attach one, or give `lqx.uki=URL`";
        let wrong = |message: String| ApiError::new(ErrorCode::NotFound, message, hint);
        let version = &self.environment.version;
        let Some(path) = downloaded else {
            return medium::find(&self.environment.roots, version)
                .map_err(|e| wrong(e.to_string()));
        };
        let url = self.environment.cmdline.uki.as_deref().unwrap_or_default();
        match Source::of_file(&path, url) {
            Ok(Some(source)) if source.version == *version => Ok(source),
            Ok(Some(source)) => Err(wrong(format!(
                "this is limiquantix {version}, but {url} is {}",
                source.version
            ))),
            Ok(None) => Err(wrong(format!("{url} is not a limiquantix UKI"))),
            Err(error) => Err(wrong(format!("could not read the downloaded UKI: {error}"))),
        }
    }

    /// The disk that is meant, if it may be overwritten.
    fn target(&self, request: &InstallRequest, media: &[String]) -> Result<Block, ApiError> {
        let roots = &self.environment.roots;
        let mut media = media.to_vec();
        media.extend(discover::booted_disk(roots));
        let candidates: Vec<Candidate> = blocks::all(roots)
            .into_iter()
            .filter(Block::is_disk)
            .map(|mut block| {
                if let Err(error) = is_free(&block.path) {
                    block.used_by.get_or_insert(error.to_string());
                }
                let content = match Device::open(&block.path) {
                    Ok(device) => Content::of(&device, block.sector),
                    Err(error) => Content::Unreadable(error.to_string()),
                };
                Candidate { block, content }
            })
            .collect();
        choose(request, &candidates, &media)
            .map(|chosen| chosen.block.clone())
            .map_err(|refusal| ApiError::from(&refusal))
    }

    /// `lqx-` and the last six digits of the first NIC's MAC address.
    fn default_name(&self) -> Name {
        let nics = inventory::nics(&self.environment.roots);
        let mac = nics
            .first()
            .map(|nic| nic.mac.replace(':', ""))
            .unwrap_or_default();
        let end = mac
            .get(6..)
            .filter(|end| !end.is_empty())
            .map(str::to_owned);
        let end = end.unwrap_or_else(|| {
            let boot = text(self.environment.roots.proc.join("sys/kernel/random/uuid"));
            boot.get(..6).unwrap_or("host").to_owned()
        });
        let fallback = || "lqx-host".parse();

        format!("lqx-{end}")
            .parse()
            .or_else(|_| fallback())
            .expect("`lqx-host` is a name")
    }

    fn install(&self, ready: Ready) {
        let Ready {
            plan,
            disk,
            source,
            loader,
        } = ready;
        tracing::info!(disk = %disk.path().display(), from = %source.place, version = %source.version, install = %plan.table.disk, "installing");
        let uki = source.bytes();
        let mut work = Work {
            plan: &plan,
            disk: &disk,
            uki: &uki,
            loader: &loader,
            scratch: &self.environment.scratch,
            uki_sha256: None,
        };
        for step in WRITING_STEPS {
            self.report(step, 0, words(step));
            let done = work.step(step, &mut |percent| self.report(step, percent, words(step)));
            if let Err(error) = done {
                let error = ApiError::new(
                    ErrorCode::Internal,
                    format!("{}: {}", words(step), chain(&error)),
                    "the disk is not bootable and can be installed again; see the log",
                );
                self.fail(step, &error);
                return;
            }
        }
        self.report(InstallStep::Reboot, 0, words(InstallStep::Reboot));
        tracing::info!(install = %plan.table.disk, "installed");
        if let Err(error) = self.environment.power.ask(PowerAction::Reboot) {
            let error = ApiError::new(
                ErrorCode::Internal,
                format!("the system is installed, but {}", chain(&error)),
                "restart the machine by hand",
            );
            self.fail(InstallStep::Reboot, &error);
            return;
        }
        self.phase.send_replace(InstallPhase::Done);
    }

    fn report(&self, step: InstallStep, percent: u8, detail: &str) {
        let (from, to) = share(step);
        let done = u32::from(from) + u32::from(to - from) * u32::from(percent.min(100)) / 100;
        let phase = InstallPhase::Running {
            step,
            progress: Percent(u8::try_from(done).unwrap_or(100)),
            detail: detail.to_owned(),
        };
        self.phase.send_if_modified(|now| {
            let changed = *now != phase;
            *now = phase;
            changed
        });
    }

    fn fail(&self, step: InstallStep, error: &ApiError) {
        tracing::error!(?step, error = %error.message, hint = %error.hint, "the install failed");
        self.phase.send_replace(InstallPhase::Failed {
            step,
            error: error.clone(),
        });
    }
}

/// Which part of the whole a step is, in percent: by how long they take with a UKI of some 80 MB.
fn share(step: InstallStep) -> (u8, u8) {
    match step {
        InstallStep::Check => (0, 5),
        InstallStep::Partition => (5, 8),
        InstallStep::Format => (8, 20),
        InstallStep::Copy => (20, 60),
        InstallStep::Verify => (60, 90),
        InstallStep::Configure => (90, 96),
        InstallStep::Activate => (96, 99),
        InstallStep::Reboot => (99, 100),
    }
}

fn words(step: InstallStep) -> &'static str {
    match step {
        InstallStep::Check => "checking medium and disk",
        InstallStep::Partition => "writing the partition table",
        InstallStep::Format => "making file systems",
        InstallStep::Copy => "copying the system",
        InstallStep::Verify => "reading back and comparing",
        InstallStep::Configure => "writing name and addresses",
        InstallStep::Activate => "making it bootable",
        InstallStep::Reboot => "restarting",
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(ApiError::new(
                ErrorCode::Internal,
                format!("the check ended unexpectedly: {error}"),
                "see the log",
            ))
        })
}

#[cfg(test)]
mod tests;
