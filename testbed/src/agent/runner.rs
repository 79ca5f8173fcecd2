//! The inside of `kvm-runner`: waits for a job, sees the host's files under a throw-away overlay, runs one program.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::mount_bind_recursive;
use rustix::time::{ClockId, Timespec, clock_settime};
use serde::{Deserialize, Serialize};

use super::{entropy, load_modules, mount_at, port};

/// What to run, as the host says it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// Seconds since the epoch: a resumed guest's clock stands where it was saved.
    pub now_seconds: i64,
    /// Fresh random bytes, [`entropy::BYTES`] of them: resumed guests would all draw the same numbers.
    pub entropy: Vec<u8>,
    /// Host folders to see writable: 9p tag and path.
    pub writable: Vec<(String, String)>,
    /// The program, an absolute path or a name to be found in `PATH`.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, whole.
    pub environment: BTreeMap<String, String>,
    /// Where it runs.
    pub folder: String,
}

/// What the guest says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// Booted; may be saved now.
    Ready {
        /// `/dev/kvm` is there.
        kvm: bool,
    },
    /// The program ended.
    Exit(i32),
    /// The job could not be run.
    Failed(String),
}

/// 9p settings: host files are only read, so they may be cached.
const HOST_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000";

/// Runs until the machine is switched off.
pub fn serve() -> Result<()> {
    for (source, target, kind) in [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("dev", "/dev", "devtmpfs"),
        ("pts", "/dev/pts", "devpts"),
        ("shm", "/dev/shm", "tmpfs"),
    ] {
        mount_at(source, target, kind, "")?;
    }
    rustix::system::sethostname(b"kvm-runner")?;
    load_modules()?;
    let mut control = port("/dev", 1)?;
    let kvm = Path::new("/dev/kvm").exists();
    say(&mut control, &Said::Ready { kvm })?;

    let mut line = String::new();
    // Without a host on the other side a port reads as ended; the host comes with the job.
    let mut lines = BufReader::new(control.try_clone()?);
    while !line.ends_with('\n') {
        if lines.read_line(&mut line)? == 0 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let said = match serde_json::from_str(&line)
        .context("reading the job")
        .and_then(run)
    {
        Ok(code) => Said::Exit(code),
        Err(error) => Said::Failed(format!("{error:#}")),
    };
    say(&mut control, &said)?;
    loop {
        std::thread::park();
    }
}

fn say(control: &mut File, said: &Said) -> Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    control.write_all(&line).context("writing to the host")
}

fn run(job: Job) -> Result<i32> {
    let now = Timespec {
        tv_sec: job.now_seconds,
        tv_nsec: 0,
    };
    clock_settime(ClockId::Realtime, now).context("setting the clock")?;
    let random = job.entropy.as_slice().try_into();
    entropy::credit(random.context("counting the random bytes")?)?;

    mount_at(
        "host",
        "/host",
        "9p",
        &format!("{HOST_OPTIONS},ro,cache=loose"),
    )?;
    mount_at("over", "/over", "tmpfs", "")?;
    fs::create_dir("/over/upper")?;
    fs::create_dir("/over/work")?;
    mount_at(
        "root",
        "/root",
        "overlay",
        "lowerdir=/host,upperdir=/over/upper,workdir=/over/work",
    )?;
    for folder in ["dev", "proc", "sys"] {
        mount_bind_recursive(format!("/{folder}"), format!("/root/{folder}"))?;
    }
    mount_at("run", "/root/run", "tmpfs", "mode=755")?;
    mount_at("cgroup", "/root/sys/fs/cgroup", "cgroup2", "")?;
    for (tag, folder) in &job.writable {
        mount_at(
            tag,
            &format!("/root{folder}"),
            "9p",
            &format!("{HOST_OPTIONS},cache=none"),
        )?;
    }
    rustix::process::chroot("/root")?;
    rustix::process::chdir("/")?;

    // Nothing may depend on it: a host without `ip` has a guest without loopback.
    let _ = Command::new("/bin/ip")
        .args(["link", "set", "lo", "up"])
        .status();

    let output = |number: u32| -> Result<Stdio> { Ok(Stdio::from(port("/dev", number)?)) };
    let program = find(&job.program, job.environment.get("PATH"))?;
    let mut child = Command::new(&program)
        .args(&job.arguments)
        .env_clear()
        .envs(&job.environment)
        .current_dir(&job.folder)
        .stdin(Stdio::null())
        .stdout(output(2)?)
        .stderr(output(3)?)
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let status = child.wait()?;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn find(program: &str, path: Option<&String>) -> Result<String> {
    if program.contains('/') {
        return Ok(program.to_owned());
    }
    for folder in path.map_or("/usr/bin:/bin", String::as_str).split(':') {
        let file = format!("{folder}/{program}");
        if Path::new(&file).is_file() {
            return Ok(file);
        }
    }
    bail!("no program `{program}` in {path:?}")
}
