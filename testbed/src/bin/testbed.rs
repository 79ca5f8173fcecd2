//! What the Makefile calls: the demonstration, the tests with their totals, the figures.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::suite::Stage;
use testbed::{bench, demonstration, qemu, suite};

/// Whole appliances in QEMU.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Install the ISO on a fresh disk, enrol, start a guest, show its console
    Run {
        /// End after the guest's marker
        #[arg(long)]
        headless: bool,
    },
    /// Measure the figures and compare them with their limits
    Bench,
    /// Build the QEMU that can run UEFI guests in its emulated AMD-V, unless it is in the cache
    Qemu,
    /// Run tests; the last line has the totals
    Test {
        /// These stages; all if none is named
        #[arg(value_enum)]
        stages: Vec<Stage>,
        /// Of the testbed's tests only those with this in their names
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Options::parse().what {
        What::Run { headless } => wait_for(demonstration::run(headless)).map(|()| true),
        What::Bench => wait_for(bench::run()),
        What::Qemu => qemu::build().map(|program| {
            println!("{}", program.display());
            true
        }),
        What::Test { stages, only } => {
            let all = [Stage::Unit, Stage::Kvm, Stage::Testbed];
            let stages = if stages.is_empty() { &all[..] } else { &stages };
            suite::run(stages, only.as_deref())
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wait_for<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
