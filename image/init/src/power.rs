//! The end of the machine's life, in order: `hostd`, everyone else, file systems, power.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::sync;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};

use crate::console::{Log, announce, log};
use crate::hostd::Hostd;
use crate::sys;

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    PowerOff,
    Restart,
}

/// `hostd` writes out what it knows in this time. Its guests have been seen out before.
const HOSTD_TIME: Duration = Duration::from_secs(30);
const OTHERS_TIME: Duration = Duration::from_secs(10);
const KILLED_TIME: Duration = Duration::from_secs(5);

impl Ending {
    /// What a signal to PID 1 asks for.
    pub(crate) fn of_signal(signal: i32) -> Option<Self> {
        match signal {
            libc::SIGTERM | libc::SIGUSR2 => Some(Self::PowerOff),
            libc::SIGINT => Some(Self::Restart),
            _ => None,
        }
    }
}

/// Asks `hostd` to see its guests out and then to bring the machine to this end.
pub(crate) fn ask(ending: Ending, daemon: Option<Pid>) {
    let (signal, what) = match ending {
        Ending::PowerOff => (Signal::USR1, "powering off"),
        Ending::Restart => (Signal::USR2, "restarting"),
    };
    announce(&format!(
        "{what} when the guests have powered off; ask again to end them now"
    ));
    if let Some(daemon) = daemon
        && let Err(error) = kill_process(daemon, signal)
    {
        log(Log::Error, &format!("hostd could not be asked: {error}"));
    }
}

/// Ends the machine; does not return on a machine that can be ended. `daemon` is the running `hostd`, if it runs.
pub(crate) fn end(ending: Ending, daemon: Option<Pid>, hostd: &mut Hostd) -> ExitCode {
    announce(match ending {
        Ending::PowerOff => "powering off",
        Ending::Restart => "restarting",
    });
    if let Some(daemon) = daemon {
        let _ = kill_process(daemon, Signal::TERM);
        let mut alive = true;
        let in_time = wait_until(HOSTD_TIME, || {
            hostd.drain();
            alive = alive && !sys::reap().iter().any(|(pid, _)| *pid == daemon);
            !alive
        });
        if !in_time {
            log(Log::Error, "hostd did not end in its time");
        }
    }
    sys::signal_everyone(libc::SIGTERM);
    wait_until(OTHERS_TIME, sys::is_childless);
    sys::signal_everyone(libc::SIGKILL);
    if !wait_until(KILLED_TIME, sys::is_childless) {
        log(Log::Error, "some processes could not be ended");
    }
    sync();
    unmount_all();
    sync();
    let command = match ending {
        Ending::PowerOff => RebootCommand::PowerOff,
        Ending::Restart => RebootCommand::Restart,
    };
    let refused = reboot(command);
    log(Log::Error, &format!("the machine did not end: {refused:?}"));
    // PID 1 that returns is a kernel panic, and `panic=10` restarts the machine: better than a machine that hangs.
    ExitCode::FAILURE
}

fn wait_until(at_most: Duration, mut done: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < at_most {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Takes every file system with data off, the newest mount first. What cannot be taken off is made read-only, which writes it out as well.
fn unmount_all() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for place in places_with_data(&mounts).iter().rev() {
        if let Err(error) = unmount(place.as_str(), UnmountFlags::empty()) {
            log(
                Log::Error,
                &format!("{place} could not be unmounted: {error}"),
            );
            let _ = mount_remount(place.as_str(), MountFlags::RDONLY, c"");
            let _ = unmount(place.as_str(), UnmountFlags::DETACH);
        }
    }
}

/// The mount points of file systems on devices, in order of mounting.
fn places_with_data(mounts: &str) -> Vec<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, place) = (fields.next()?, fields.next()?);
            device.starts_with("/dev/").then(|| unescape(place))
        })
        .collect()
}

/// The kernel writes blanks in mount points as `\040`, and so on.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out += before;
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_on_devices_are_taken_off() {
        let mounts = "none / rootfs ro 0 0\nproc /proc proc rw 0 0\n/dev/vda2 /run/lqx/state ext4 rw 0 0\n/dev/loop0 /mnt/a\\040b vfat ro 0 0\ntmpfs /run tmpfs rw 0 0\n";
        assert_eq!(places_with_data(mounts), ["/run/lqx/state", "/mnt/a b"]);
    }

    #[test]
    fn signals_mean_what_the_daemon_expects() {
        assert_eq!(Ending::of_signal(libc::SIGTERM), Some(Ending::PowerOff));
        assert_eq!(Ending::of_signal(libc::SIGINT), Some(Ending::Restart));
        assert_eq!(Ending::of_signal(libc::SIGCHLD), None);
    }
}
