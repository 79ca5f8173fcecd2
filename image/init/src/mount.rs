//! The few mounts, in order.

use std::fs;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::{chdir, chroot};

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    options: &'static str,
}

const SEALED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

const MOUNTS: &[Mount] = &[
    Mount {
        kind: "proc",
        at: "/proc",
        flags: SEALED,
        options: "",
    },
    Mount {
        kind: "sysfs",
        at: "/sys",
        flags: SEALED,
        options: "",
    },
    Mount {
        kind: "devtmpfs",
        at: "/dev",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: "mode=0755",
    },
    Mount {
        kind: "devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: "gid=0,mode=0620,ptmxmode=0666",
    },
    Mount {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: SEALED,
        options: "mode=1777",
    },
    Mount {
        kind: "tmpfs",
        at: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: "mode=0755",
    },
    Mount {
        kind: "tmpfs",
        at: "/tmp",
        flags: SEALED,
        options: "mode=1777",
    },
    Mount {
        kind: "cgroup2",
        at: "/sys/fs/cgroup",
        flags: SEALED,
        options: "nsdelegate",
    },
    Mount {
        kind: "securityfs",
        at: "/sys/kernel/security",
        flags: SEALED,
        options: "",
    },
    Mount {
        kind: "bpf",
        at: "/sys/fs/bpf",
        flags: SEALED,
        options: "mode=0700",
    },
    Mount {
        kind: "pstore",
        at: "/sys/fs/pstore",
        flags: SEALED,
        options: "",
    },
];

/// Folders that must exist below the memory file systems.
const FOLDERS: &[&str] = &["/run/limiquantix", "/run/lqx", "/run/lock", "/run/log"];

/// Makes every mount; returns what failed, in words. The log is not there before, so failures are told after.
pub(crate) fn all() -> Vec<String> {
    let mut failures = Vec::new();
    if let Err(error) = leave_rootfs() {
        failures.push(format!("the root could not be made read-only: {error}"));
    }
    for entry in MOUNTS {
        if matches!(entry.at, "/dev/pts" | "/dev/shm") {
            let _ = fs::create_dir(entry.at);
        }
        if !Path::new(entry.at).is_dir() {
            continue; // the kernel lacks it: bpf, pstore
        }
        let options = std::ffi::CString::new(entry.options).unwrap_or_default();
        match mount(
            entry.kind,
            entry.at,
            entry.kind,
            entry.flags,
            options.as_c_str(),
        ) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => failures.push(format!("{} could not be mounted: {error}", entry.at)),
        }
    }
    for folder in FOLDERS {
        if let Err(error) = fs::create_dir_all(folder) {
            failures.push(format!("{folder} could not be created: {error}"));
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = rustix::fs::symlinkat(target, CWD, link);
    }
    // Also said on the command line; but a boot loader over the net may have put its own in that one's place, and without this a panic
    // would stop boot counting for good.
    let panic = "/proc/sys/kernel/panic";
    if fs::read_to_string(panic).is_ok_and(|seconds| seconds.trim() == "0") {
        let _ = fs::write(panic, "10");
    }
    // What children's groups may be limited by.
    for controller in ["+cpu", "+cpuset", "+io", "+memory", "+pids", "+hugetlb"] {
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", controller);
    }
    failures
}

/// Mounted once its module is loaded.
pub(crate) fn efi_variables() -> Result<(), Errno> {
    let at = "/sys/firmware/efi/efivars";
    if !Path::new(at).is_dir() {
        return Ok(());
    }
    match mount("efivarfs", at, "efivarfs", SEALED, c"") {
        Err(Errno::BUSY) => Ok(()),
        other => other,
    }
}

/// Moves from the kernel's rootfs onto a bind mount of it: rootfs itself can neither be made read-only alone nor be left by
/// `pivot_root`, which the jails of guests need. Nothing is copied.
fn leave_rootfs() -> Result<(), Errno> {
    mount_bind("/", "/mnt")?;
    chdir("/mnt")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    mount_remount(
        "/",
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV,
        c"",
    )
}
