//! Figures that hostd's own benches measure: the API on this machine, a VM's start in a guest that has `/dev/kvm`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Figure;
use crate::artifacts::repository;

type Samples = BTreeMap<String, Vec<f64>>;

/// The API under 32 clients, against an fsync on the same disk in the same run. Never emulated.
///
/// Both ways of being 32 clients have to hold: each sending a request about four times a second, and each sending the next
/// when the last is answered. Writes are compared with the median fsync: its own p99 is what a busy disk makes of it, and
/// would excuse more the busier the machine is.
pub(super) fn api(figures: &mut Vec<Figure>) -> Result<()> {
    let folder = tempfile::tempdir_in(repository().join("target"))?;
    let file = folder.path().join("samples.json");
    let mut command = bench("api");
    command
        .env("API_DIR", folder.path())
        .env("API_SAMPLES", &file);
    run(&mut command)?;
    let samples: Samples = serde_json::from_slice(&fs::read(&file)?)?;
    let of = |kind: &str| -> Result<Vec<f64>> {
        let found = samples.get(kind).cloned();
        found.with_context(|| format!("the bench measured no `{kind}`"))
    };
    let fsync = of("fsync")?;
    let (median, worst) = (percentile(&fsync, 50), percentile(&fsync, 99));
    let mut figure = |name, unit, value, at_most, samples| {
        figures.push(Figure {
            name,
            unit,
            value,
            at_most,
            samples,
        });
    };
    figure(
        "fsync of the store's disk, median",
        "ms",
        median,
        None,
        fsync.clone(),
    );
    figure("fsync of the store's disk, p99", "ms", worst, None, fsync);
    for (kind, name, limit) in [
        ("vm get, paced", "API: one VM, p99", Some(5.0)),
        ("vm list, paced", "API: list of 200 VMs, p99", Some(5.0)),
        ("vm get, at once", "API: one VM, saturated, p99", Some(5.0)),
        ("vm list, at once", "API: list, saturated, p99", Some(5.0)),
    ] {
        let samples = of(kind)?;
        figure(name, "ms", percentile(&samples, 99), limit, samples);
    }
    for (kind, name, limit) in [
        ("vm update, paced", "API: write p99 / fsync", Some(3.0)),
        (
            "vm update, at once",
            "API: write, saturated, p99 / fsync",
            Some(3.0),
        ),
    ] {
        let samples = of(kind)?;
        let ratio = percentile(&samples, 99) / median;
        figure(name, "", ratio, limit, samples);
    }
    Ok(())
}

/// A VM process from its start to the first thing its guest says, against QEMU's `microvm`, in turns.
pub(super) fn start(figures: &mut Vec<Figure>) -> Result<()> {
    let here = std::env::current_exe()?;
    let runner = here.with_file_name("kvm-runner");
    let mut command = bench("start");
    command
        .env("START_SAMPLES", "1")
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner);
    let said = run(&mut command)?;
    let line = said.lines().rev().find(|line| line.starts_with('{'));
    let mut samples: Samples = serde_json::from_str(line.context("no samples")?)?;
    let ours = samples.remove("ours").context("none of ours")?;
    let theirs = samples.remove("microvm").context("none of microvm")?;
    let ratio = percentile(&ours, 50) / percentile(&theirs, 50);
    figures.push(Figure::median(
        "VM start to first guest output",
        "ms",
        ours,
        None,
    ));
    figures.push(Figure::median(
        "the same of QEMU microvm",
        "ms",
        theirs,
        None,
    ));
    // No limit: what 30 ms are outside of emulation cannot be told from here.
    figures.push(Figure::one("ratio of these", "", ratio, None));
    Ok(())
}

/// The whole workspace is built: another set of features would compile half the tree again.
fn bench(name: &str) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command
        .args([
            "bench",
            "--quiet",
            "--workspace",
            "--locked",
            "--bench",
            name,
        ])
        .current_dir(repository());
    command
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("starting cargo")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    if said.contains("skipped:") {
        bail!("{said}");
    }
    Ok(said)
}

fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&samples, 50), 51.0);
        assert_eq!(percentile(&samples, 99), 100.0);
        assert!(percentile(&[], 99).is_nan());
    }
}
