//! Opens what a VM process needs, gives birth to it and writes down that it lives.
//!
//! ```text
//! RUN/vms/<id>/   control.sock serial.sock   listening; their other end lives in the child
//!                 status.json                the child rewrites it
//!                 log                        the child's standard error
//!                 process.json               who it is: what adoption trusts
//!                 root/                      empty; the child mounts its own root there, seen by nobody else
//! ```
//! The child waits for one byte until `process.json` is written: a daemon that dies in between leaves no unknown VM.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use api::ids::VmId;
use hostd_state::Fault;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::cgroup::{CgroupError, Cgroups, Limits};
use super::jail::{self, Birth, JailConfig};
use super::plan::{BootNumbers, Numbers, VmPlan};
use super::{Opened, OpenedBoot, fault};
use crate::report::chain;
use crate::vmm_child::{ChildConfig, DEVICE_FDS};

/// The ids VM processes get: far above any account of the host.
pub const UID_FIRST: u32 = 70_000;
/// Descriptors a child may need besides those it is given: eventfds per queue, vCPU, connection.
const FILES_BESIDES: u64 = 1024;
/// The most that is read of a file that a VM process writes.
const READ_MAX_BYTES: u64 = 64 * 1024;

/// Where on this host VM processes are kept and what they are made of.
#[derive(Debug, Clone)]
pub struct LaunchConfig {
    /// The folder of folders, `/run/lqx/vms`; on a file system that does not outlive a boot.
    pub run: PathBuf,
    /// Where cgroup2 is mounted; absent: no limits. The product always has it.
    pub cgroup_root: Option<PathBuf>,
    /// The program that has the `vmm` applet: `/proc/self/exe`.
    pub program: PathBuf,
    /// `/dev/kvm`.
    pub kvm: PathBuf,
}

impl LaunchConfig {
    /// As on the appliance.
    pub fn appliance() -> Self {
        Self {
            run: "/run/lqx/vms".into(),
            cgroup_root: Some("/sys/fs/cgroup".into()),
            program: "/proc/self/exe".into(),
            kvm: "/dev/kvm".into(),
        }
    }
}

/// The files of one VM below [`LaunchConfig::run`].
#[derive(Debug, Clone)]
pub struct VmFolder {
    path: PathBuf,
}

impl VmFolder {
    /// Of this VM.
    pub fn of(run: &Path, vm: VmId) -> Self {
        Self {
            path: run.join(vm.to_string()),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }
    /// The serial console's socket.
    pub fn serial(&self) -> PathBuf {
        self.path.join("serial.sock")
    }
    fn status_path(&self) -> PathBuf {
        self.path.join("status.json")
    }
    fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }
    fn process_path(&self) -> PathBuf {
        self.path.join("process.json")
    }
    fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// What the child last wrote about itself, if that can be read.
    pub fn status(&self) -> Option<vmm::control::Status> {
        serde_json::from_slice(&read_bounded(&self.status_path()).ok()?).ok()
    }

    /// The last line the child said on its standard error.
    pub fn last_words(&self) -> Option<String> {
        let log = read_bounded(&self.log_path()).ok()?;
        let log = String::from_utf8_lossy(&log);
        log.lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .map(str::to_owned)
    }

    /// Who lives here.
    ///
    /// # Errors
    /// Nobody, or the file is damaged.
    pub fn process(&self) -> io::Result<ProcessRecord> {
        serde_json::from_slice(&read_bounded(&self.process_path())?).map_err(io::Error::other)
    }

    /// Removes all of it. Absent is fine.
    ///
    /// # Errors
    /// What the file system said.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(READ_MAX_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Who a VM process is: enough to find it again and to know that it is the same one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Which VM.
    pub vm: VmId,
    /// Under which generation.
    pub generation: u64,
    /// Its process id.
    pub pid: u32,
    /// When it was started, in the kernel's ticks since boot: tells it from a later process of the same number.
    pub start_time: u64,
    /// Its user id.
    pub uid: u32,
}

/// A VM process that was just started.
#[derive(Debug)]
pub struct Launched {
    /// Who it is.
    pub process: ProcessRecord,
    /// A handle on it.
    pub pidfd: OwnedFd,
}

/// Why no process came to be.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Something of the host is missing or broken.
    #[error("could not {step}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No virtualization.
    #[error("could not open `{path}`")]
    Kvm {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup.
    #[error("could not limit its resources")]
    Cgroup(#[from] CgroupError),
}

impl From<LaunchError> for Fault {
    fn from(error: LaunchError) -> Self {
        let (code, next) = match &error {
            LaunchError::Kvm { .. } => (
                "no_kvm",
                "enable virtualization in the firmware's set-up, then start it again",
            ),
            LaunchError::Cgroup(_) | LaunchError::Host { .. } => {
                ("launch_failed", "see the host's log, then start it again")
            }
        };
        fault(code, chain(&error), next)
    }
}

fn host<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |error| LaunchError::Host {
        step,
        source: error.into(),
    }
}

/// Starts a VM process. Blocks for some milliseconds; leaves nothing behind when it fails.
///
/// # Errors
/// What was missing.
pub fn launch(
    config: &LaunchConfig,
    cgroups: Option<&Cgroups>,
    plan: &VmPlan,
    opened: Opened,
    uid: u32,
) -> Result<Launched, LaunchError> {
    let folder = VmFolder::of(&config.run, plan.vm);
    let launched = give_birth(config, cgroups, plan, opened, uid, &folder);
    if launched.is_err() {
        if let Some(cgroups) = cgroups {
            let _ = cgroups.remove(plan.vm);
        }
        let _ = folder.clear();
    }
    launched
}

fn give_birth(
    config: &LaunchConfig,
    cgroups: Option<&Cgroups>,
    plan: &VmPlan,
    opened: Opened,
    uid: u32,
    folder: &VmFolder,
) -> Result<Launched, LaunchError> {
    folder.clear().map_err(host("clear the VM's old folder"))?;
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private
        .create(folder.root())
        .map_err(host("create the VM's folder"))?;

    let control =
        UnixListener::bind(folder.control()).map_err(host("listen on the control socket"))?;
    let serial =
        UnixListener::bind(folder.serial()).map_err(host("listen on the serial socket"))?;
    let mut writable = OpenOptions::new();
    writable
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600);
    let status = writable
        .open(folder.status_path())
        .map_err(host("create the status file"))?;
    let mut appending = OpenOptions::new();
    appending.append(true).create(true).mode(0o600);
    let log = appending
        .open(folder.log_path())
        .map_err(host("create the log file"))?;
    let null = OpenOptions::new()
        .read(true)
        .open("/dev/null")
        .map_err(host("open /dev/null"))?;
    let kvm = OpenOptions::new().read(true).write(true).open(&config.kvm);
    let kvm = kvm.map_err(|source| LaunchError::Kvm {
        path: config.kvm.clone(),
        source,
    })?;
    let program = rustix::fs::open(
        &config.program,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(host("find its program"))?;

    // Every descriptor's number in the child is its place in this list.
    let mut devices: Vec<BorrowedFd<'_>> = Vec::new();
    let mut place = |fd| -> RawFd {
        devices.push(fd);
        DEVICE_FDS + devices.len() as RawFd - 1
    };
    let numbers = Numbers {
        kvm: place(kvm.as_fd()),
        control: place(control.as_fd()),
        serial: place(serial.as_fd()),
        status: place(status.as_fd()),
        boot: match &opened.boot {
            OpenedBoot::Kernel { kernel, initrd } => BootNumbers::Kernel {
                kernel: place(kernel.as_fd()),
                initrd: initrd.as_ref().map(|initrd| place(initrd.as_fd())),
            },
            OpenedBoot::Firmware(files) => BootNumbers::Firmware {
                code: place(files.code.as_fd()),
                variables: place(files.variables.as_fd()),
            },
        },
        disks: opened
            .disks
            .iter()
            .map(|disk| place(disk.as_fd()))
            .collect(),
        taps: opened.taps.iter().map(|tap| place(tap.as_fd())).collect(),
    };
    let child = ChildConfig {
        jail: JailConfig {
            uid,
            root: folder.root(),
            files_max: FILES_BESIDES + devices.len() as u64,
        },
        vmm: plan.config(&numbers),
    };
    let document = document(&child).map_err(host("write its configuration"))?;
    let (go_child, go) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(host("make a pipe"))?;
    let mut fds = vec![document.as_fd(), go_child.as_fd()];
    fds.extend(devices);

    let limits = Limits::for_vm(plan.memory_mib, plan.vcpus);
    let cgroup = cgroups
        .map(|cgroups| cgroups.create(plan.vm, limits))
        .transpose()?;
    let spawned = jail::spawn(&Birth {
        program: program.as_fd(),
        args: &[c"hostd", c"vmm"],
        log: log.as_fd(),
        null: null.as_fd(),
        fds: &fds,
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
    })
    .map_err(host("start its process"))?;

    // From here on the child exists, waiting. When `go` is dropped without a word, it ends by itself.
    let start_time = start_time(spawned.pid).map_err(host("look at its process"))?;
    let process = ProcessRecord {
        vm: plan.vm,
        generation: plan.generation,
        pid: spawned.pid,
        start_time,
        uid,
    };
    write_whole(&folder.process_path(), &process).map_err(host("write down its process"))?;
    File::from(go)
        .write_all(b"g")
        .map_err(host("give the go-ahead"))?;
    Ok(Launched {
        process,
        pidfd: spawned.pidfd,
    })
}

/// The child's configuration as a file without a name.
fn document(child: &ChildConfig) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(c"vm-config", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&mut file, child)?;
    file.rewind()?;
    Ok(file)
}

/// Under another name first, so that a reader sees all of it or nothing. The folder does not outlive a boot: no fsync.
fn write_whole(path: &Path, process: &ProcessRecord) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    fs::write(&unfinished, serde_json::to_vec(process)?)?;
    fs::rename(&unfinished, path)
}

/// When a process was started: the 22nd field of its stat line, see proc(5).
///
/// # Errors
/// It is gone.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets and may itself hold blanks and brackets.
    let after_name = line.rsplit_once(')').map(|(_, rest)| rest);
    let field = after_name.and_then(|rest| rest.split_whitespace().nth(22 - 3));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other("the stat line has no start time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_start_time() {
        let me = std::process::id();
        assert_eq!(start_time(me).unwrap(), start_time(me).unwrap());
        assert!(start_time(me).unwrap() > start_time(1).unwrap());
    }

    #[test]
    fn what_a_vm_process_wrote_is_read_with_care() {
        let run = tempfile::tempdir().unwrap();
        let folder = VmFolder::of(run.path(), VmId::mint());
        assert!(folder.status().is_none());
        fs::create_dir(folder.path()).unwrap();
        fs::write(folder.status_path(), b"{\"name\":").unwrap();
        assert!(folder.status().is_none());
        fs::write(folder.log_path(), b"first\nlast words\n\n").unwrap();
        assert_eq!(folder.last_words().unwrap(), "last words");
        folder.clear().unwrap();
        folder.clear().unwrap();
    }
}
