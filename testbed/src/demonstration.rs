//! `make run`: from the ISO to a guest's prompt, with nothing but what a newcomer has: a medium, a screen, `lqx`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::artifacts::{dist, repository};
use crate::console::Facts;
use crate::expect::secs;
use crate::machine::{Boot, Machine, MachineConfig};
use crate::media;

/// The figures of the README: a host of 2 GiB and 8 GB.
const DISK_BYTES: u64 = 8_000_000_000;
/// Where the demonstration's API is looked for first; any free port when it is taken.
const PORT: u16 = 8443;
/// The demonstration's administrator.
const PASSWORD: &str = "demonstration";
/// Longest for installing and booting, on an emulated and busy machine.
const INSTALL_WITHIN: Duration = secs(1200);

/// Progress for people: each step with the time it took.
struct Steps {
    started: Instant,
}

impl Steps {
    fn say(&self, what: &str) {
        println!("[{:4} s] {what}", self.started.elapsed().as_secs());
    }
}

/// The demonstration. With `headless` it ends after the guest's marker; else it stays until Ctrl-C.
pub async fn run(headless: bool) -> Result<()> {
    let steps = Steps {
        started: Instant::now(),
    };
    let folder = repository().join("target/run");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let lqx = Lqx {
        program: beside_us("lqx")?,
        config: folder.join("lqx.toml"),
    };

    let disk = folder.join("disk.raw");
    media::blank(&disk, DISK_BYTES)?;
    let seed = folder.join("seed.raw");
    media::seed(
        &seed,
        "[install]\ndisk = \"lab-disk-0\"\nhostname = \"demo\"\n",
    )?;
    let mut config = MachineConfig::new("demo", Boot::Firmware).disk(&disk);
    config.medium = Some(dist("limiquantix.iso")?);
    config.seed = Some(seed);
    config.outside = true;
    config.preferred_port = Some(PORT);
    let mut machine = config.start(&folder)?;
    steps.say(&format!(
        "an empty machine is on, with the ISO in it: QEMU, {}",
        machine.accelerator()
    ));
    steps.say(&format!(
        "its serial line is kept in {}",
        shown(machine.log())
    ));

    let facts = watch_install(&mut machine, &steps)?;
    steps.say("installed, restarted from its own disk; its screen shows:");
    for line in machine
        .serial()
        .screen()
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        println!("         {line}");
    }

    let address = format!("127.0.0.1:{}", machine.port(443)?);
    let step = |what: &str, arguments: &[&str]| -> Result<()> {
        steps.say(&format!("{what}:  lqx {}", arguments.join(" ")));
        lqx.run(arguments)
    };
    let (kernel, initrd) = (dist("guest/vmlinuz")?, dist("guest/initrd")?);
    let (kernel, initrd) = (shown(&kernel), shown(&initrd));
    let (fingerprint, token) = (facts.fingerprint.as_str(), facts.setup_token.as_str());
    step(
        "enrolling the first administrator",
        &[
            "setup",
            &address,
            "--fingerprint",
            fingerprint,
            "--token",
            token,
        ],
    )?;
    step("its hosts", &["host", "ls"])?;
    step(
        "a kernel",
        &[
            "image", "upload", &kernel, "--kind", "kernel", "--name", "kernel",
        ],
    )?;
    step(
        "an initramfs",
        &[
            "image", "upload", &initrd, "--kind", "initrd", "--name", "initrd",
        ],
    )?;
    step(
        "a network",
        &["network", "create", "lab", "--subnet", "10.77.0.0/24"],
    )?;
    step("a volume", &["volume", "create", "data", "--size", "256M"])?;
    let create = [
        "vm", "create", "first", "--memory", "256M", "--kernel", "kernel", "--initrd", "initrd",
    ];
    let devices = [
        "--disk",
        "data",
        "--network",
        "lab",
        "--cmdline",
        "console=ttyS0 quiet no_timer_check",
        "--start",
    ];
    step("a virtual machine", &[&create[..], &devices[..]].concat())?;
    step(
        "its serial console",
        &[
            "vm",
            "console",
            "first",
            "--for",
            "LQX-GUEST-READY.*",
            "--timeout",
            "600",
        ],
    )?;
    step("what there is", &["vm", "ls"])?;
    steps.say("the guest is up: a Linux in limiquantix's own VMM, in the appliance, in QEMU");
    if headless {
        return Ok(());
    }

    let config = shown(&lqx.config);
    let program = shown(&lqx.program);
    println!(
        "
The API answers on https://{address}/api/v1 (admin, password `{PASSWORD}`). In another terminal:

  export LQX_CONFIG={config}
  alias lqx={program}
  lqx vm console first      # the guest's shell; Ctrl-] leaves
  lqx vm stop first
  lqx events
  lqx --help

Ctrl-C here switches the appliance off."
    );
    tokio::signal::ctrl_c()
        .await
        .context("waiting for Ctrl-C")?;
    println!();
    steps.say("switching off");
    Ok(())
}

/// Tells how far the installer is, until the installed system shows its setup token.
fn watch_install(machine: &mut Machine, steps: &Steps) -> Result<Facts> {
    let progress = regex::Regex::new(r"(\d{1,3}) ?%")?;
    let failure = regex::Regex::new(r"(?i)install(?:ation)? failed.*")?;
    let mut last = String::new();
    let mut failed = None;
    let facts = Facts::wait(machine, INSTALL_WITHIN, |screen| {
        let now = if let Some(found) = failure.find(screen) {
            failed = Some(found.as_str().to_owned());
            found.as_str().to_owned()
        } else if let Some(found) = progress.captures(screen) {
            // Tens only: a line for each percent would be a flood.
            let tens = found[1].parse::<u32>().unwrap_or(0) / 10 * 10;
            format!("installing: {tens} %")
        } else if screen.contains("Status") {
            "the installed system is up".to_owned()
        } else {
            return;
        };
        if now != last {
            steps.say(&now);
            last = now;
        }
    });
    match (facts, failed) {
        (Err(error), Some(reason)) => Err(error.context(format!("the installer said: {reason}"))),
        (facts, _) => facts,
    }
}

fn beside_us(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let file = here.parent().unwrap_or(Path::new(".")).join(name);
    if !file.is_file() {
        bail!("{} is not there: `make binaries` builds it", file.display());
    }
    Ok(file)
}

/// A path as short as it can be said from the repository.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The command line program, with a configuration of its own.
struct Lqx {
    program: PathBuf,
    config: PathBuf,
}

impl Lqx {
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = Command::new(&self.program)
            .args(arguments)
            .env("LQX_CONFIG", &self.config)
            .env("LQX_PASSWORD", PASSWORD)
            .env_remove("LQX_OUTPUT")
            .env_remove("LQX_APPLIANCE")
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if !status.success() {
            bail!("lqx {}: {status}", arguments.join(" "));
        }
        Ok(())
    }
}
