//! The appliance at rest: what runs in it, and how much it takes.

use anyhow::{Context, Result, ensure};
use testbed::lab::lab_test;

/// Limits of the issue, in MiB. The image's memory is everything but VMs, on a host of 2 GiB.
const IMAGE_MIB_MAX: u64 = 300;
const HOSTD_MIB_MAX: u64 = 64;

/// One init, one daemon, nothing of others; and both in bounds.
#[test]
fn an_idle_appliance_is_small() -> Result<()> {
    lab_test("an_idle_appliance_is_small", async |lab| {
        let agent = lab.prepared().await?.agent()?;
        let processes = agent.processes()?;
        let init = processes
            .iter()
            .find(|process| process.pid == 1)
            .context("no PID 1")?;
        ensure!(
            init.arguments
                .first()
                .is_some_and(|program| program.ends_with("init")),
            "{init:?}"
        );
        let ours = |words: &str| {
            processes
                .iter()
                .filter(|process| process.arguments.join(" ").contains(words))
                .count()
        };
        ensure!(ours("hostd daemon") == 1, "daemons: {processes:?}");
        // Kernel threads have no arguments; our helper is the one guest in the house.
        let foreign: Vec<_> = processes
            .iter()
            .filter(|process| {
                process.arguments.first().is_some_and(|name| {
                    !name.contains("hostd")
                        && !name.contains("lab-agent")
                        && name != "/proc/self/exe"
                })
            })
            .filter(|process| process.pid != 1)
            .collect();
        ensure!(foreign.is_empty(), "{foreign:?}");

        let hostd = processes
            .iter()
            .find(|process| process.arguments.join(" ").contains("hostd daemon"));
        let hostd = hostd.context("no daemon")?.rss_kib / 1024;
        let meminfo = agent.read("/proc/meminfo")?;
        let mib = |key: &str| -> Result<u64> {
            let line = meminfo
                .lines()
                .find(|line| line.starts_with(key))
                .with_context(|| format!("no {key}"))?;
            Ok(line
                .split_whitespace()
                .nth(1)
                .context("no number")?
                .parse::<u64>()?
                / 1024)
        };
        let used = mib("MemTotal:")? - mib("MemAvailable:")?;
        println!(
            "hostd {hostd} MiB resident, image {used} MiB of {} MiB",
            mib("MemTotal:")?
        );
        ensure!(hostd <= HOSTD_MIB_MAX, "hostd takes {hostd} MiB");
        ensure!(used <= IMAGE_MIB_MAX, "the image takes {used} MiB");
        Ok(())
    })
}
