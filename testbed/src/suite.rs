//! `make test`: every test there is, in three stages, and one line of totals at the end.
//!
//! ```text
//!   unit     cargo test, here
//!   kvm      cargo test, each program inside a guest with /dev/kvm (kvm-runner)
//!   testbed  whole appliances, one test at a time
//! ```
//! A skipped test passes as far as cargo is concerned. It says so in a line `skipped: reason` (or `SKIP: reason`), which is
//! looked for in the output of passing tests: it is counted and told here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use regex::Regex;
use serde_json::Value;

use crate::artifacts::repository;

/// A stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Everything that needs neither KVM nor an appliance.
    Unit,
    /// What needs `/dev/kvm`.
    Kvm,
    /// Whole appliances.
    Testbed,
}

/// Packages all of whose integration tests need `/dev/kvm`.
const KVM_PACKAGES: &[&str] = &["vmm"];
/// Integration tests of `hostd` that need `/dev/kvm`, or devices and namespaces of a kernel that we know.
const KVM_NAMES: &[&str] = &["jail", "network"];
/// Tests of this package that boot appliances.
const LAB_TESTS: &[&str] = &[
    "appliance",
    "cli",
    "install",
    "vms",
    "uefi",
    "survival",
    "security",
];

/// What came of it.
#[derive(Debug, Default)]
pub struct Totals {
    passed: u64,
    failed: u64,
    /// Test and reason.
    skipped: Vec<(String, String)>,
    failures: Vec<String>,
    /// Of each program with a failure: how its output ended.
    endings: Vec<Vec<String>>,
}

/// How much of the output of a program with a failure is shown once more at the end, in lines.
const ENDING: usize = 100;

/// An integration test target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    package: String,
    name: String,
}

impl Target {
    fn stage(&self) -> Stage {
        let named = KVM_NAMES.contains(&self.name.as_str());
        if self.package == "testbed" && LAB_TESTS.contains(&self.name.as_str()) {
            Stage::Testbed
        } else if KVM_PACKAGES.contains(&self.package.as_str())
            || (self.package == "hostd" && named)
        {
            Stage::Kvm
        } else {
            Stage::Unit
        }
    }
}

/// Runs the stages; true when nothing failed. `only` filters the tests of the last stage by name.
pub fn run(stages: &[Stage], only: Option<&str>) -> Result<bool> {
    let targets = targets()?;
    let mut totals = Totals::default();
    for stage in stages {
        let started = Instant::now();
        let commands = commands(*stage, &targets, only)?;
        if commands.is_empty() {
            println!("== {stage:?}: no tests");
        }
        for command in commands {
            println!("== {stage:?}: {}", describe(&command));
            totals
                .run(command)
                .with_context(|| format!("running the {stage:?} tests"))?;
        }
        println!("== {stage:?}: {}", minutes(started.elapsed()));
    }
    for ending in &totals.endings {
        println!("== Once more, what failed");
        for line in ending {
            println!("{line}");
        }
    }
    for (test, reason) in &totals.skipped {
        println!("skipped {test}: {reason}");
    }
    for test in &totals.failures {
        println!("FAILED {test}");
    }
    // The last line, by which a run is known.
    println!("{}", totals.line());
    Ok(totals.failed == 0)
}

fn minutes(time: Duration) -> String {
    format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
}

fn describe(command: &Command) -> String {
    let arguments: Vec<String> = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    format!(
        "{} {}",
        command.get_program().to_string_lossy(),
        arguments.join(" ")
    )
}

fn targets() -> Result<Vec<Target>> {
    let output = Command::new(cargo())
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--locked",
            "--offline",
        ])
        .current_dir(repository())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"][0] == "test" {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                found.push(Target {
                    package: text(&package["name"]),
                    name: text(&target["name"]),
                });
            }
        }
    }
    Ok(found)
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

fn commands(stage: Stage, targets: &[Target], only: Option<&str>) -> Result<Vec<Command>> {
    let names = |package: Option<&str>| -> Vec<&str> {
        let here = |target: &&Target| {
            target.stage() == stage && package.is_none_or(|package| target.package == package)
        };
        targets
            .iter()
            .filter(here)
            .map(|target| target.name.as_str())
            .collect()
    };
    let test = |names: &[&str]| -> Command {
        let mut command = Command::new(cargo());
        command
            .args(["test", "--workspace", "--locked", "--no-fail-fast"])
            .current_dir(repository());
        for name in names {
            command.args(["--test", name]);
        }
        command
    };
    let output = ["--", "--show-output"];
    let mut commands = Vec::new();
    match stage {
        Stage::Unit => {
            let mut command = test(&names(None));
            command.args(["--lib", "--bins"]).args(output);
            commands.push(command);
        }
        Stage::Kvm => {
            let runner = beside_us("kvm-runner")?;
            for package in ["vmm", "hostd"] {
                let names = names(Some(package));
                if names.is_empty() {
                    continue;
                }
                let mut command = test(&names);
                command
                    .args(output)
                    .arg("--test-threads=1")
                    .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", &runner);
                commands.push(command);
            }
        }
        Stage::Testbed => {
            let here = std::env::current_exe()?;
            let mut command = test(&names(None));
            command.args(output).arg("--test-threads=1").args(only);
            command
                .env("LQX_LAB_REQUIRED", "1")
                .env("LQX_BINARIES", here.parent().unwrap_or(Path::new(".")));
            commands.push(command);
        }
    }
    Ok(commands)
}

fn beside_us(name: &str) -> Result<std::path::PathBuf> {
    let here = std::env::current_exe()?;
    let file = here.parent().unwrap_or(Path::new(".")).join(name);
    if !file.is_file() {
        bail!("{} is not there: `make binaries` builds it", file.display());
    }
    Ok(file)
}

impl Totals {
    fn run(&mut self, mut command: Command) -> Result<()> {
        // Both streams into one, so that what belongs together stays together.
        let (reader, writer) = std::io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command.spawn().context("starting cargo")?;
        drop(command);
        let mut reading = Reading::new()?;
        let before = (self.passed, self.failed);
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if reading.line(&line, self) {
                println!("{line}");
            }
        }
        let status = child.wait()?;
        reading.finish(self);
        if !status.success() && self.failed == before.1 {
            // It did not get as far as running tests.
            self.failed += 1;
            self.failures.push(format!("cargo test: {status}"));
            self.endings.push(reading.ending());
        }
        if status.success() && (self.passed, self.failed) == before && self.skipped.is_empty() {
            bail!("not a single test ran");
        }
        Ok(())
    }

    fn line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skipped.len()
        )
    }
}

/// Reads what libtest prints.
struct Reading {
    result: Regex,
    outcome: Regex,
    heading: Regex,
    skip: Regex,
    program: Regex,
    /// The program that is running, until its result is read.
    running: Option<String>,
    /// What was printed since it was started.
    printed: Vec<String>,
    current: Option<String>,
    /// Inside the output of passing tests, which is not worth printing.
    quiet: bool,
    skips: BTreeMap<String, String>,
}

impl Reading {
    fn new() -> Result<Self> {
        Ok(Self {
            result: Regex::new(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")?,
            outcome: Regex::new(
                r"^test (\S+)(?: - should panic)? \.\.\. (?:FAILED|ignored,? ?(.*))$",
            )?,
            heading: Regex::new(r"^---- (\S+) std(?:out|err) ----$")?,
            skip: Regex::new(r"^(?:SKIP|skipped)(?: \S+)?: (.+)$")?,
            program: Regex::new(r"^\s*Running (?:unittests )?(\S+) \(.*\)$")?,
            running: None,
            printed: Vec::new(),
            current: None,
            quiet: false,
            skips: BTreeMap::new(),
        })
    }

    /// Takes a line in; true when it is to be printed.
    fn line(&mut self, line: &str, totals: &mut Totals) -> bool {
        let line = line.trim_end();
        if let Some(found) = self.program.captures(line) {
            self.finish(totals);
            self.running = Some(found[1].to_owned());
            self.printed.clear();
            self.quiet = false;
        }
        if !self.quiet {
            self.printed.push(line.to_owned());
        }
        if let Some(found) = self.result.captures(line) {
            let number = |at: usize| found[at].parse::<u64>().unwrap_or(0);
            totals.passed += number(1);
            totals.failed += number(2);
            self.quiet = false;
            if number(2) > 0 {
                totals.endings.push(self.ending());
            }
            self.running = None;
            self.finish(totals);
        } else if let Some(found) = self.outcome.captures(line) {
            match found.get(2) {
                Some(reason) => totals
                    .skipped
                    .push((found[1].to_owned(), format!("ignored: {}", reason.as_str()))),
                None => totals.failures.push(found[1].to_owned()),
            }
        } else if let Some(found) = self.heading.captures(line) {
            self.current = Some(found[1].to_owned());
        } else if line == "successes:" {
            self.quiet = true;
        } else if line == "failures:" {
            self.quiet = false;
        } else if let (Some(found), Some(test)) = (self.skip.captures(line), &self.current)
            && self.quiet
        {
            self.skips.insert(test.clone(), found[1].to_owned());
        }
        !self.quiet
    }

    /// The end of what the program printed.
    fn ending(&self) -> Vec<String> {
        let skip = self.printed.len().saturating_sub(ENDING);
        self.printed[skip..].to_vec()
    }

    /// At the end of a test program: its skipped tests were counted as passed. One that gave no result has died.
    fn finish(&mut self, totals: &mut Totals) {
        if let Some(program) = self.running.take() {
            totals.failed += 1;
            totals.failures.push(format!("{program}: died"));
            totals.endings.push(self.ending());
        }
        for skip in std::mem::take(&mut self.skips) {
            totals.passed = totals.passed.saturating_sub(1);
            totals.skipped.push(skip);
        }
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_libtest_prints_is_counted() {
        let output = "\
running 4 tests
test a ... ok
test b ... FAILED
test c ... ignored, needs a GPU
test d ... ok

successes:

---- a stdout ----
skipped a: no /dev/kvm
lots of it

---- d stdout ----
nothing of note

successes:
    a
    d

failures:

---- b stdout ----
skipped in vain: it failed

failures:
    b

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.16s
";
        let mut totals = Totals::default();
        let mut reading = Reading::new().unwrap();
        let printed: Vec<&str> = output
            .lines()
            .filter(|line| reading.line(line, &mut totals))
            .collect();
        assert!(!printed.contains(&"lots of it"));
        assert!(printed.contains(&"skipped in vain: it failed"));
        expect!["1 passed, 1 failed, 2 skipped"].assert_eq(&totals.line());
        assert_eq!(totals.failures, ["b"]);
        assert!(totals.endings[0].contains(&"skipped in vain: it failed".to_owned()));
        assert_eq!(
            totals.skipped[0],
            ("c".to_owned(), "ignored: needs a GPU".to_owned())
        );
        assert_eq!(
            totals.skipped[1],
            ("a".to_owned(), "no /dev/kvm".to_owned())
        );
    }

    #[test]
    fn a_program_that_dies_is_named_and_its_end_is_shown() {
        let output = "\
     Running tests/boot.rs (target/debug/deps/boot-8bdbb1df640d875e)
running 2 tests
test a ... ok
kvm-runner: the guest is gone
error: test failed, to rerun pass `-p vmm --test boot`
     Running unittests src/lib.rs (target/debug/deps/vmm-0)
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.16s
";
        let mut totals = Totals::default();
        let mut reading = Reading::new().unwrap();
        for line in output.lines() {
            reading.line(line, &mut totals);
        }
        reading.finish(&mut totals);
        assert_eq!(totals.line(), "3 passed, 1 failed, 0 skipped");
        assert_eq!(totals.failures, ["tests/boot.rs: died"]);
        assert_eq!(totals.endings.len(), 1);
        assert!(totals.endings[0].contains(&"kvm-runner: the guest is gone".to_owned()));
    }

    #[test]
    fn tests_are_told_apart_by_what_they_need() {
        let stage = |package: &str, name: &str| {
            Target {
                package: package.to_owned(),
                name: name.to_owned(),
            }
            .stage()
        };
        assert_eq!(stage("vmm", "boot"), Stage::Kvm);
        assert_eq!(stage("hostd", "jail"), Stage::Kvm);
        assert_eq!(stage("hostd", "network"), Stage::Kvm);
        assert_eq!(stage("hostd", "api"), Stage::Unit);
        assert_eq!(stage("testbed", "vms"), Stage::Testbed);
        assert_eq!(stage("testbed", "tidy"), Stage::Unit);
    }
}
