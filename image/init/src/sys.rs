//! The few system calls `rustix` has no safe face for: signals as a descriptor, netlink's multicast, signalling everyone.
#![allow(unsafe_code)] // UNSAFETY: signalfd, bind with sockaddr_nl, kill(-1) and setsid between fork and exec exist as C calls only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// The signals PID 1 heeds, as a descriptor.
pub(crate) struct Signals(OwnedFd);

const HEEDED: [i32; 5] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

impl Signals {
    /// Blocks them for this process and makes them readable; [`own_session`] unblocks them for children.
    pub(crate) fn block() -> Self {
        // SAFETY: the set is initialized by sigemptyset before use; all pointers are to locals that outlive the calls.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in HEEDED {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        assert!(fd >= 0, "signalfd is missing from this kernel");
        // SAFETY: `fd` is the fresh result of signalfd, checked, and owned by nobody else.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// To wait for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next pending signal: its number, and which process sent it, if one did.
    pub(crate) fn next(&self) -> Option<(i32, Option<Pid>)> {
        let mut info = [0u8; INFO_BYTES];
        match rustix::io::read(&self.0, &mut info) {
            Ok(INFO_BYTES) => Some(told(&info)),
            _ => None,
        }
    }
}

/// `struct signalfd_siginfo` (signalfd(2)): `ssi_signo`, `ssi_errno`, `ssi_code` and `ssi_pid` come first.
const INFO_BYTES: usize = 128;

fn told(info: &[u8; INFO_BYTES]) -> (i32, Option<Pid>) {
    let word = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let sender = match word(8) {
        libc::SI_USER => Pid::from_raw(word(12)),
        _ => None,
    };
    (word(0), sender)
}

/// Ctrl-Alt-Del sends SIGINT to PID 1 instead of restarting on the spot.
pub(crate) fn ctrl_alt_del_signals_us() {
    let _ = reboot(RebootCommand::CadOff);
}

/// Waits until one is readable; false when the time ran out.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], at_most: Duration) -> bool {
    let mut polls: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    let timeout = Timespec {
        tv_sec: at_most.as_secs().cast_signed(),
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    poll(&mut polls, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Collects all children that have ended, ours and orphans, with how they ended in words.
pub(crate) fn reap() -> Vec<(Pid, String)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("it ended with exit status {code}"),
            (_, Some(signal)) => {
                format!("it was killed by signal {signal} ({})", signal_name(signal))
            }
            _ => "it ended in an unknown way".to_owned(),
        };
        ended.push((pid, how));
    }
    ended
}

/// Reaps what has ended, and says whether no process is left: every orphan is a child of PID 1.
pub(crate) fn is_childless() -> bool {
    reap();
    matches!(wait(WaitOptions::NOHANG), Err(rustix::io::Errno::CHILD))
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => "SIGABRT, it aborted",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL, an instruction this processor lacks",
        libc::SIGKILL => "SIGKILL, by somebody or for want of memory",
        libc::SIGSEGV => "SIGSEGV, a memory error",
        libc::SIGSYS => "SIGSYS, a forbidden system call",
        libc::SIGTERM => "SIGTERM",
        _ => "see signal(7)",
    }
}

/// Sends a signal to every process but this one.
pub(crate) fn signal_everyone(signal: i32) {
    // SAFETY: kill takes no pointers; as PID 1, -1 means all processes but ourselves.
    unsafe { libc::kill(-1, signal) };
}

/// Makes the child of `command` the leader of a session of its own, so that no terminal of ours is its, with no signal blocked: `std`
/// hands our mask down, and a daemon that cannot be asked to end would hold up every power-off.
pub(crate) fn own_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid, sigemptyset and sigprocmask are async-signal-safe, the set is a local, and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            if libc::setsid() < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    command
}

/// A netlink socket that receives the kernel's announcements of devices.
pub(crate) fn uevent_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            libc::NETLINK_KOBJECT_UEVENT,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is the fresh result of socket, checked, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_nl is plain data for which zeros are valid; the pointer and length passed are those of the local; setsockopt reads one int.
    let result = unsafe {
        // Coldplug brings hundreds at once: room for them. Refusal is harmless.
        let room: i32 = 4 << 20;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            size_of::<i32>() as libc::socklen_t,
        );
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = 1; // the kernel's own messages; group 2 would be udev's
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_signal_names_the_process_that_sent_it_and_the_kernel_is_none() {
        let info = |code: i32| {
            let mut info = [0u8; INFO_BYTES];
            for (at, word) in [(0, libc::SIGINT), (8, code), (12, 77)] {
                info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            }
            told(&info)
        };
        assert_eq!(info(libc::SI_USER), (libc::SIGINT, Pid::from_raw(77)));
        assert_eq!(info(libc::SI_KERNEL), (libc::SIGINT, None));
    }

    #[test]
    fn a_child_can_be_ended_although_we_block_signals() {
        let _signals = Signals::block();
        let mut child = own_session(Command::new("sleep").arg("60"))
            .spawn()
            .unwrap();
        rustix::process::kill_process(Pid::from_child(&child), rustix::process::Signal::TERM)
            .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
