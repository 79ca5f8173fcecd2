//! `make bench`: the figures, each with its limit, the machine it was measured on, and the raw samples kept.

mod programs;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use api::client::{Client, Fingerprint};
use serde::Serialize;

use crate::accel::Accelerator;
use crate::agent::UP_MARKER;
use crate::artifacts::{dist, repository, uki_stub};
use crate::expect::{answered, secs};
use crate::guest::{GuestConsole, demonstration_with_disk, start};
use crate::initramfs::Initramfs;
use crate::lab::{BOOT, Lab};
use crate::machine::{Boot, Machine, MachineConfig};
use crate::process::cpu_seconds;
use crate::{media, needs, runner};

/// Times each boot is measured.
const BOOTS: usize = 3;

/// A figure.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    value: f64,
    /// The limit.
    at_most: Option<f64>,
    samples: Vec<f64>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Place {
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    kernel: String,
    commit: String,
    qemu: String,
    accelerator: String,
    at_unix_seconds: u64,
}

/// Measures everything and prints it. True when every figure is within its limit.
pub async fn run() -> Result<bool> {
    let place = Place::here()?;
    println!(
        "machine   {} x {}, {} MiB",
        place.cpus, place.cpu, place.memory_mib
    );
    println!("kernel    {}", place.kernel);
    println!("commit    {}", place.commit);
    println!("qemu      {}, {}", place.qemu, place.accelerator);
    if place.accelerator != Accelerator::Kvm.to_string() {
        println!(
            "          EMULATED: times say something as ratios only; the API is measured natively"
        );
    }
    let mut figures = Vec::new();
    sizes(&mut figures)?;
    programs::api(&mut figures)?;
    programs::start(&mut figures)?;
    boots(&mut figures).await?;
    memory(&mut figures).await?;

    println!("\n{:38} {:>10} {:>10} {:8}", "", "value", "limit", "");
    for figure in &figures {
        let limit = figure
            .at_most
            .map_or_else(String::new, |limit| format!("{limit:.1}"));
        let verdict = if figure.holds() {
            ""
        } else {
            "  OVER THE LIMIT"
        };
        println!(
            "{:38} {:>10.2} {limit:>10} {:8}{verdict}",
            figure.name, figure.value, figure.unit
        );
    }
    let folder = repository().join("target/bench");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{}.json", place.at_unix_seconds));
    let all = serde_json::json!({ "place": place, "figures": figures });
    fs::write(&file, serde_json::to_vec_pretty(&all)?)?;
    println!("\nraw samples: {}", file.display());
    Ok(figures.iter().all(Figure::holds))
}

impl Figure {
    fn one(name: &'static str, unit: &'static str, value: f64, at_most: Option<f64>) -> Self {
        Self {
            name,
            unit,
            value,
            at_most,
            samples: vec![value],
        }
    }

    /// The median of several.
    fn median(
        name: &'static str,
        unit: &'static str,
        samples: Vec<f64>,
        at_most: Option<f64>,
    ) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let value = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
        Self {
            name,
            unit,
            value,
            at_most,
            samples,
        }
    }

    fn holds(&self) -> bool {
        self.at_most.is_none_or(|limit| self.value <= limit)
    }
}

impl Place {
    fn here() -> Result<Self> {
        let line = |file: &str, key: &str| -> String {
            let text = fs::read_to_string(file).unwrap_or_default();
            let found = text.lines().find_map(|line| line.strip_prefix(key));
            found
                .unwrap_or_default()
                .trim_start_matches([' ', '\t', ':'])
                .to_owned()
        };
        let said = |program: &str, arguments: &[&str]| -> String {
            let output = Command::new(program)
                .args(arguments)
                .current_dir(repository())
                .output();
            let text = output
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .unwrap_or_default();
            text.lines().next().unwrap_or_default().to_owned()
        };
        let memory = line("/proc/meminfo", "MemTotal");
        Ok(Self {
            cpu: line("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism()?.get(),
            memory_mib: memory
                .split(' ')
                .next()
                .unwrap_or("0")
                .parse::<u64>()
                .unwrap_or(0)
                / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            qemu: said("qemu-system-x86_64", &["--version"]),
            accelerator: Accelerator::detect()?.to_string(),
            at_unix_seconds: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)?
                .as_secs(),
        })
    }
}

fn sizes(figures: &mut Vec<Figure>) -> Result<()> {
    for (name, file, limit) in [
        ("UKI", "limiquantix.efi", 100.0),
        ("ISO", "limiquantix.iso", 150.0),
    ] {
        let megabytes = fs::metadata(dist(file)?)?.len() as f64 / 1e6;
        figures.push(Figure::one(name, "MB", megabytes, Some(limit)));
    }
    Ok(())
}

/// Our image against the smallest thing the same kernel can boot, both from the same installed disk by the same firmware and
/// boot loader, in turns.
async fn boots(figures: &mut Vec<Figure>) -> Result<()> {
    let lab = Lab::new("bench")?;
    let baseline = lab.file("baseline.raw");
    baseline_disk(&lab, &baseline)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut our_cpu, mut their_cpu) = (Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        let disk = lab.file("ours.raw");
        media::copy(&dist("limiquantix.raw")?, &disk)?;
        let mut machine = MachineConfig::new("ours", Boot::Firmware)
            .disk(&disk)
            .start(lab.folder())?;
        let address = format!("127.0.0.1:{}", machine.port(443)?);
        let started = Instant::now();
        answered("the API answers", BOOT, || {
            let client = Client::https(&address, Fingerprint([0; 32]));
            async move {
                // Any certificate will do here: that one was presented is the answer.
                match client?.health_get().await {
                    Err(api::client::ClientError::Fingerprint { .. }) => Ok(Some(())),
                    other => bail!("{other:?}"),
                }
            }
        })
        .await?;
        ours.push(started.elapsed().as_secs_f64());
        our_cpu.push(cpu_seconds(machine.pid()).unwrap_or(f64::NAN));
        machine.cut_power()?;

        let mut machine: Machine = MachineConfig::new("baseline", Boot::Firmware)
            .disk(&baseline)
            .start(lab.folder())?;
        let started = Instant::now();
        machine.serial().wait_for(UP_MARKER, BOOT)?;
        theirs.push(started.elapsed().as_secs_f64());
        their_cpu.push(cpu_seconds(machine.pid()).unwrap_or(f64::NAN));
        machine.cut_power()?;
    }
    let ratios = |ours: &[f64], theirs: &[f64]| {
        ours.iter()
            .zip(theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect()
    };
    let (wall, cpu) = (ratios(&ours, &theirs), ratios(&our_cpu, &their_cpu));
    figures.push(Figure::median("power on to API", "s", ours, None));
    figures.push(Figure::median(
        "power on to user space, bare kernel",
        "s",
        theirs,
        None,
    ));
    figures.push(Figure::median("ratio of these", "", wall, Some(1.5)));
    figures.push(Figure::median("ratio of their CPU time", "", cpu, None));
    Ok(())
}

/// A copy of our installed disk whose boot entry is the same kernel with an initramfs of one program that says it is up.
fn baseline_disk(lab: &Lab, disk: &Path) -> Result<()> {
    let mut archive = Initramfs::default();
    for folder in ["dev", "lab", "lab/proc"] {
        archive.dir(folder)?;
    }
    archive.console()?;
    archive.copy("init", 0o755, &runner::agent_binary()?)?;
    let stub = fs::read(uki_stub()?)?;
    let sections = [
        (".osrel", image::rootfs::os_release("0.0.1").into_bytes()),
        (".cmdline", image::uki::COMMAND_LINE.as_bytes().to_vec()),
        (".linux", fs::read(dist("vmlinuz")?)?),
        (".initrd", archive.finish()?),
    ];
    let uki = lab.file("baseline.efi");
    fs::write(&uki, image::uki::assemble(&stub, &sections)?)?;

    media::copy(&dist("limiquantix.raw")?, disk)?;
    let table = gpt::GptConfig::new().open(disk)?;
    let esp = table
        .partitions()
        .values()
        .next()
        .context("the installed disk has no partitions")?;
    let at = format!("{}@@{}", disk.display(), esp.first_lba * 512);
    let tool = |name: &str, arguments: &[&str]| -> Result<()> {
        let program = needs::program(name)
            .with_context(|| format!("`{name}` is not installed (package mtools)"))?;
        let output = Command::new(program)
            .args(["-i", &at])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            bail!(
                "{name} {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    };
    tool("mdel", &["::EFI/Linux/*.efi"])?;
    tool(
        "mcopy",
        &[&uki.display().to_string(), "::EFI/Linux/baseline.efi"],
    )
}

/// What an idle appliance takes, and what a VM takes beyond its guest's memory.
async fn memory(figures: &mut Vec<Figure>) -> Result<()> {
    let mut lab = Lab::new("bench-memory")?;
    let appliance = lab.prepared().await?;
    let api = appliance.api.clone();
    // A moment of rest after being resumed.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let agent = appliance.agent()?;
    let hostd = agent.processes_with("hostd daemon")?;
    let hostd = hostd.first().context("no daemon")?.rss_kib as f64 / 1024.0;
    let meminfo = agent.read("/proc/meminfo")?;
    let mib = |key: &str| -> Result<f64> {
        let line = meminfo
            .lines()
            .find(|line| line.starts_with(key))
            .with_context(|| format!("no {key}"))?;
        Ok(line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse::<f64>()?
            / 1024.0)
    };
    figures.push(Figure::one(
        "image memory, host of 2 GiB, no VM",
        "MiB",
        mib("MemTotal:")? - mib("MemAvailable:")?,
        Some(300.0),
    ));
    figures.push(Figure::one(
        "hostd resident, idle",
        "MiB",
        hostd,
        Some(64.0),
    ));

    let vm = start(&api, &demonstration_with_disk(&api, "web").await?).await?;
    GuestConsole::open(&api, vm.id)
        .await?
        .ready(secs(240))
        .await?;
    let processes = agent.processes_with("hostd vmm")?;
    if processes.is_empty() {
        bail!("no VM process is to be seen");
    }
    let overhead: u64 = processes
        .iter()
        .map(|process| process.pss_kib.saturating_sub(process.pss_shared_kib))
        .sum();
    figures.push(Figure::one(
        "VM process beyond guest memory",
        "MiB",
        overhead as f64 / 1024.0,
        Some(8.0),
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_not_moved_by_one_bad_sample() {
        let figure = Figure::median("x", "s", vec![1.2, 90.0, 1.1], Some(1.5));
        assert_eq!(figure.value, 1.2);
        assert!(figure.holds());
        assert!(!Figure::one("x", "s", 1.6, Some(1.5)).holds());
    }
}
