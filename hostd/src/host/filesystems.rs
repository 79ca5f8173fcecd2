//! Our file systems: checked, mounted, and never made anew here. Only the installer formats.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use super::Roots;
use super::discover::Install;

/// A file system of ours could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    /// The device did not appear.
    #[error("{0} did not appear within {1:?}")]
    NoDevice(PathBuf, Duration),
    /// e2fsck says it needs a person.
    #[error(
        "the file system on {device} is damaged and is left as it is: e2fsck ended with {code}: {output}"
    )]
    Damaged {
        /// The partition.
        device: PathBuf,
        /// e2fsck's exit code (e2fsck(8)).
        code: i32,
        /// The end of what it said.
        output: String,
    },
    /// e2fsck could not be started.
    #[error("could not start e2fsck")]
    Check(#[source] std::io::Error),
    /// The kernel refused.
    #[error("could not mount {device} on {on}")]
    Mount {
        /// The partition.
        device: PathBuf,
        /// Where.
        on: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// How long a partition's node may take to appear after its disk.
pub const NODE_WAIT: Duration = Duration::from_secs(10);

/// Checks and mounts the state and data partitions. Already mounted ones stay (a restarted daemon).
pub fn mount_install(
    roots: &Roots,
    install: &Install,
    state: &Path,
    data: &Path,
) -> Result<(), FilesystemError> {
    for (device, on) in [(&install.state, state), (&install.data, data)] {
        if is_mounted(roots, on) {
            continue;
        }
        wait_for(device, NODE_WAIT)?;
        check_ext4(device)?;
        mount(device, on, "ext4", MountFlags::NOATIME)?;
    }
    Ok(())
}

/// Something is mounted there.
pub fn is_mounted(roots: &Roots, on: &Path) -> bool {
    super::text(roots.proc.join("mounts"))
        .lines()
        .any(|line| line.split(' ').nth(1).map(Path::new) == Some(on))
}

/// Waits for a device node.
pub fn wait_for(device: &Path, at_most: Duration) -> Result<(), FilesystemError> {
    let until = Instant::now() + at_most;
    while !device.exists() {
        if Instant::now() >= until {
            return Err(FilesystemError::NoDevice(device.to_owned(), at_most));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// `e2fsck -p`: replays the journal and mends what is safe. What is not safe is for a person.
pub fn check_ext4(device: &Path) -> Result<(), FilesystemError> {
    let ended = Command::new("e2fsck")
        .arg("-p")
        .arg(device)
        .output()
        .map_err(FilesystemError::Check)?;
    // e2fsck(8): 0 clean, 1 mended, 2 mended and wants a reboot (only for mounted ones); 4 and more: not mended.
    match ended.status.code() {
        Some(0..=3) => Ok(()),
        code => {
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&ended.stdout),
                String::from_utf8_lossy(&ended.stderr)
            );
            let text: Vec<&str> = text.lines().rev().take(3).collect();
            Err(FilesystemError::Damaged {
                device: device.to_owned(),
                code: code.unwrap_or(-1),
                output: text.into_iter().rev().collect::<Vec<_>>().join("; "),
            })
        }
    }
}

/// Mounts a device; nothing on it may be executed, be a device or give privileges.
pub fn mount(
    device: &Path,
    on: &Path,
    kind: &str,
    flags: MountFlags,
) -> Result<(), FilesystemError> {
    let failed = |source: std::io::Error| FilesystemError::Mount {
        device: device.to_owned(),
        on: on.to_owned(),
        source,
    };
    std::fs::create_dir_all(on).map_err(failed)?;
    let flags = flags | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(device, on, kind, flags, None).map_err(|errno| failed(errno.into()))
}

/// A mount that ends with its scope.
#[derive(Debug)]
pub struct Mounted {
    on: PathBuf,
}

impl Mounted {
    /// See [`mount`].
    pub fn new(
        device: &Path,
        on: &Path,
        kind: &str,
        flags: MountFlags,
    ) -> Result<Self, FilesystemError> {
        mount(device, on, kind, flags)?;
        Ok(Self { on: on.to_owned() })
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.on
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.on, UnmountFlags::empty()) {
            tracing::warn!(on = %self.on.display(), %error, "could not unmount; it goes when it is no longer used");
            let _ = rustix::mount::unmount(&self.on, UnmountFlags::DETACH);
        }
    }
}
