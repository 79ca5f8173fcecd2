//! A VM's cgroup (version 2): how much of the host it may take.
//!
//! ```text
//! ROOT ─ lqx ─ vms ─ <id>      memory.max, pids.max, cpu.weight; the VM process is born into it
//! ```

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::ids::VmId;
use rustix::fs::{Mode, OFlags};

/// What a VM process may need besides guest RAM, MiB: device state, queues, page tables, the page cache of its disks.
const OVERHEAD_MIB: u64 = 96;
/// Page tables and KVM's own bookkeeping grow with guest RAM: one part in this many.
const OVERHEAD_SHARE: u64 = 50;
/// Threads besides vCPUs: event loop, disk and network workers, io_uring's own.
const THREADS_BESIDES_VCPUS: u64 = 128;

/// How often, and how far apart, a cgroup that is still busy is tried to be removed.
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// What a VM may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, guest RAM included.
    pub memory_max: u64,
    /// Processes and threads.
    pub pids_max: u64,
    /// Share of the CPUs when they are contended, 1 to 10000; 100 is the kernel's default for one group.
    pub cpu_weight: u64,
}

impl Limits {
    /// For a VM of this size.
    pub fn for_vm(memory_mib: u64, vcpus: u8) -> Self {
        let overhead = OVERHEAD_MIB + memory_mib / OVERHEAD_SHARE;
        Self {
            memory_max: memory_mib.saturating_add(overhead).saturating_mul(1 << 20),
            pids_max: u64::from(vcpus) + THREADS_BESIDES_VCPUS,
            cpu_weight: (100 * u64::from(vcpus)).clamp(1, 10_000),
        }
    }
}

/// All VMs' cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    vms: PathBuf,
}

/// Why a cgroup could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not {step} `{path}`")]
pub struct CgroupError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError {
        step,
        path: path.to_owned(),
        source,
    }
}

impl Cgroups {
    /// Below `root`, where a cgroup2 file system is mounted. Hands the controllers down to the VMs' level.
    ///
    /// # Errors
    /// No cgroup2 there, or a controller that is missing.
    pub fn prepare(root: &Path) -> Result<Self, CgroupError> {
        let lqx = root.join("lqx");
        let vms = lqx.join("vms");
        fs::create_dir_all(&vms).map_err(failed("create the cgroup", &vms))?;
        for level in [root, &lqx, &vms] {
            let control = level.join("cgroup.subtree_control");
            fs::write(&control, "+memory +pids +cpu")
                .map_err(failed("enable controllers in", &control))?;
        }
        Ok(Self { vms })
    }

    /// The folder of a VM's cgroup.
    pub fn path(&self, vm: VmId) -> PathBuf {
        self.vms.join(vm.to_string())
    }

    /// Makes a VM's cgroup, empty and limited, and opens it for being born into.
    ///
    /// # Errors
    /// What the kernel said to which file.
    pub fn create(&self, vm: VmId, limits: Limits) -> Result<OwnedFd, CgroupError> {
        self.remove(vm)?;
        let path = self.path(vm);
        fs::create_dir(&path).map_err(failed("create the cgroup", &path))?;
        let files = [
            ("memory.max", limits.memory_max.to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", limits.pids_max.to_string()),
            ("cpu.weight", limits.cpu_weight.to_string()),
        ];
        for (file, value) in files {
            let file = path.join(file);
            fs::write(&file, value).map_err(failed("write", &file))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| failed("open", &path)(errno.into()))
    }

    /// Whether the kernel killed something in a VM's cgroup for want of memory.
    pub fn out_of_memory(&self, vm: VmId) -> bool {
        let events = fs::read_to_string(self.path(vm).join("memory.events")).unwrap_or_default();
        let mut lines = events.lines().filter_map(|line| line.split_once(' '));
        lines.any(|(event, count)| event == "oom_kill" && count != "0")
    }

    /// Ends whatever still runs in a VM's cgroup and removes it. Absent is fine. Blocks for up to a second: the kernel
    /// takes its time with the last threads, its own included, that worked for the VM.
    ///
    /// # Errors
    /// What the kernel said; try again.
    pub fn remove(&self, vm: VmId) -> Result<(), CgroupError> {
        let path = self.path(vm);
        if !path.exists() {
            return Ok(());
        }
        let kill = path.join("cgroup.kill");
        fs::write(&kill, "1").map_err(failed("write", &kill))?;
        let mut tries = 1;
        loop {
            match fs::remove_dir(&path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES =>
                {
                    tries += 1;
                    std::thread::sleep(REMOVE_PAUSE);
                }
                Err(error) => return Err(failed("remove", &path)(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_room_beyond_guest_ram() {
        let limits = Limits::for_vm(256, 2);
        assert_eq!(limits.memory_max, (256 + 96 + 5) << 20);
        assert_eq!(limits.pids_max, 130);
        assert_eq!(limits.cpu_weight, 200);
        assert_eq!(Limits::for_vm(u64::MAX, 255).cpu_weight, 10_000);
    }
}
