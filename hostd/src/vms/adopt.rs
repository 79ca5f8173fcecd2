//! Children that outlived a restart of the daemon, and those that ended meanwhile.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags};
use tracing::warn;

use super::launch::{ProcessRecord, VmFolder, start_time};

/// A VM that an earlier daemon launched.
#[derive(Debug)]
pub struct Found {
    /// Who it was.
    pub process: ProcessRecord,
    /// Its folder.
    pub folder: VmFolder,
    /// A handle on it, if it lives.
    pub pidfd: Option<OwnedFd>,
}

/// Looks through the VMs' folders. A folder without a readable record never held a running VM (its child ends when it
/// gets no go-ahead) and is removed.
///
/// # Errors
/// The folder of folders can not be read.
pub fn scan(run: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        let Some(vm) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            warn!(name = ?entry.file_name(), "not a VM's folder; left alone");
            continue;
        };
        let folder = VmFolder::of(run, vm);
        match folder.process() {
            Ok(process) if process.vm == vm => {
                let pidfd = living(&process);
                found.push(Found {
                    process,
                    folder,
                    pidfd,
                });
            }
            Ok(_) | Err(_) => {
                warn!(%vm, "a launch that was never finished; cleared away");
                folder.clear()?;
            }
        }
    }
    Ok(found)
}

/// A handle on the very process that was written down; a later one of the same number is not it.
fn living(process: &ProcessRecord) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
    // Asked after the handle was taken: if the number still has that start time, the handle is on that process.
    (start_time(process.pid).ok()? == process.start_time).then_some(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::ids::VmId;

    #[test]
    fn the_living_are_told_from_the_dead_and_from_those_who_took_their_number() {
        let run = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let record = |pid, start_time| ProcessRecord {
            vm: VmId::mint(),
            generation: 3,
            pid,
            start_time,
            uid: 70_000,
        };
        let alive = record(me, start_time(me).unwrap());
        let impostor = record(me, start_time(me).unwrap() - 1);
        let dead = record(4_194_303, 1);
        for process in [&alive, &impostor, &dead] {
            let folder = run.path().join(process.vm.to_string());
            fs::create_dir(&folder).unwrap();
            fs::write(
                folder.join("process.json"),
                serde_json::to_vec(process).unwrap(),
            )
            .unwrap();
        }
        let unfinished = run.path().join(VmId::mint().to_string());
        fs::create_dir(&unfinished).unwrap();

        let found = scan(run.path()).unwrap();
        assert_eq!(found.len(), 3);
        for one in &found {
            assert_eq!(one.pidfd.is_some(), one.process == alive, "{one:?}");
        }
        assert!(!unfinished.exists());
    }
}
