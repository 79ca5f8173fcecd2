//! System call filters: one allow-list per kind of thread.
//!
//! A thread applies its own filter before it touches anything of the guest's; what is not in the list kills the process.
//! Filters are inherited by threads, so all threads are made before their parent applies its own. glibc makes calls of
//! its own (locks, heap, the end of a thread), which is why [`EVERYBODY`] is as long as it is.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Which list applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// The event loop: control socket, serial console, status file, end of the machine.
    Main,
    /// `KVM_RUN` and what an exit does.
    Vcpu,
    /// The same, in a machine with a flash chip.
    FlashVcpu,
    /// A device's queue worker.
    Worker,
    /// Reads a disk image that a stranger made, and writes what it holds to a volume.
    ImageReader,
}

/// The filter could not be built or installed.
#[derive(Debug, thiserror::Error)]
#[error("could not restrict the system calls of a {kind:?} thread")]
pub struct SeccompError {
    kind: ThreadKind,
    source: seccompiler::Error,
}

/// What a call's arguments must be.
#[derive(Debug, Clone, Copy)]
enum When {
    /// Anything.
    Always,
    /// `ioctl` with one of these requests, or `fcntl` with one of these commands.
    Requests(&'static [u32]),
    /// `mmap` or `mprotect` without `PROT_EXEC`.
    NotExecutable,
}
use When::{Always, NotExecutable, Requests};

type Call = (libc::c_long, When);

const KVM_RUN: u32 = 0xae80;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
const TUNSETOFFLOAD: u32 = libc::TUNSETOFFLOAD as u32;
const TUNSETQUEUE: u32 = libc::TUNSETQUEUE as u32;

/// What glibc and Rust's standard library do in any thread.
const EVERYBODY: &[Call] = &[
    // Locks, condition variables, channels, joining a thread.
    (libc::SYS_futex, Always),
    (libc::SYS_sched_yield, Always),
    // The heap grows and shrinks; a thread's stack is given back.
    (libc::SYS_brk, Always),
    (libc::SYS_mmap, NotExecutable),
    (libc::SYS_mprotect, NotExecutable),
    (libc::SYS_mremap, Always),
    (libc::SYS_munmap, Always),
    (libc::SYS_madvise, Always),
    // The kick's handler returns; glibc masks signals while a thread ends or is signalled.
    (libc::SYS_rt_sigreturn, Always),
    (libc::SYS_rt_sigprocmask, Always),
    (libc::SYS_sigaltstack, Always),
    (libc::SYS_restart_syscall, Always),
    // Time, where the vDSO cannot tell it.
    (libc::SYS_clock_gettime, Always),
    // eventfds; standard error for last words.
    (libc::SYS_read, Always),
    (libc::SYS_write, Always),
    (libc::SYS_writev, Always),
    (libc::SYS_close, Always),
    // A debug build asks whether a descriptor is open before it closes it.
    (libc::SYS_fcntl, Requests(&[libc::F_GETFD as u32])),
    // Panic and abort messages name the thread and end the process.
    (libc::SYS_getpid, Always),
    (libc::SYS_gettid, Always),
    (libc::SYS_tgkill, Always),
    (libc::SYS_exit, Always),
    (libc::SYS_exit_group, Always),
];

/// The event loop.
const MAIN: &[Call] = &[
    (libc::SYS_epoll_wait, Always),
    (libc::SYS_epoll_pwait, Always),
    (libc::SYS_epoll_ctl, Always),
    // Control and serial connections.
    (libc::SYS_accept4, Always),
    (libc::SYS_recvfrom, Always),
    (libc::SYS_sendto, Always),
    // The status file.
    (libc::SYS_pwrite64, Always),
    // Waiting for vCPU threads to end.
    (libc::SYS_clock_nanosleep, Always),
    (libc::SYS_nanosleep, Always),
    // The power button; devices taking down their interrupts and doorbells.
    (
        libc::SYS_ioctl,
        Requests(&[KVM_IRQ_LINE, KVM_IRQFD, KVM_IOEVENTFD, KVM_SET_GSI_ROUTING]),
    ),
];

/// A vCPU: exits are served on its thread.
const VCPU: &[Call] = &[(
    libc::SYS_ioctl,
    // The run itself; the ACPI interrupt; MSI routes, interrupts and doorbells that a driver programs; the registers for
    // the message about an instruction that KVM could not emulate.
    Requests(&[
        KVM_RUN,
        KVM_KVMCLOCK_CTRL,
        KVM_GET_REGS,
        KVM_IRQ_LINE,
        KVM_SET_GSI_ROUTING,
        KVM_IRQFD,
        KVM_IOEVENTFD,
    ]),
)];

/// What a flash chip does on a vCPU's thread: its volume, and its window.
const FLASH: &[Call] = &[
    (libc::SYS_pwrite64, Always),
    (libc::SYS_fdatasync, Always),
    (
        libc::SYS_ioctl,
        Requests(&[
            KVM_RUN,
            KVM_KVMCLOCK_CTRL,
            KVM_GET_REGS,
            KVM_IRQ_LINE,
            KVM_SET_GSI_ROUTING,
            KVM_IRQFD,
            KVM_IOEVENTFD,
            KVM_SET_USER_MEMORY_REGION,
        ]),
    ),
];

/// A queue worker: disks by io_uring or plain calls, taps, random numbers.
const WORKER: &[Call] = &[
    // A worker makes its epoll set anew for each activation.
    (libc::SYS_epoll_create1, Always),
    (libc::SYS_epoll_wait, Always),
    (libc::SYS_epoll_pwait, Always),
    (libc::SYS_epoll_ctl, Always),
    // Rate limits.
    (libc::SYS_timerfd_settime, Always),
    // Disks.
    (libc::SYS_io_uring_enter, Always),
    (libc::SYS_preadv, Always),
    (libc::SYS_pwritev, Always),
    (libc::SYS_fdatasync, Always),
    (libc::SYS_fallocate, Always),
    // How long a volume is that has grown.
    (libc::SYS_lseek, Always),
    // Taps: frames, offloads, queues switched on and off.
    (libc::SYS_ioctl, Requests(&[TUNSETOFFLOAD, TUNSETQUEUE])),
    // Entropy.
    (libc::SYS_getrandom, Always),
    (libc::SYS_clock_nanosleep, Always),
];

/// Reads one file, writes another; word of it goes through a pipe.
const IMAGE_READER: &[Call] = &[
    (libc::SYS_preadv, Always),
    (libc::SYS_pwrite64, Always),
    // The seed of a hash table.
    (libc::SYS_getrandom, Always),
];

/// Restricts the calling thread for the rest of its life.
pub fn apply(kind: ThreadKind) -> Result<(), SeccompError> {
    let failed = |source| SeccompError { kind, source };
    let program = program(kind).map_err(|error| failed(error.into()))?;
    seccompiler::apply_filter(&program).map_err(failed)
}

fn program(kind: ThreadKind) -> Result<BpfProgram, seccompiler::BackendError> {
    let own = match kind {
        ThreadKind::Main => MAIN,
        ThreadKind::Vcpu => VCPU,
        ThreadKind::FlashVcpu => FLASH,
        ThreadKind::Worker => WORKER,
        ThreadKind::ImageReader => IMAGE_READER,
    };
    let mut rules = std::collections::BTreeMap::new();
    for (call, when) in EVERYBODY.iter().chain(own) {
        rules.insert(*call, when.rules()?);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

impl When {
    fn rules(self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let argument = |index, operator, value: u64| {
            let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
            SeccompRule::new(vec![condition])
        };
        match self {
            Always => Ok(vec![]),
            Requests(requests) => requests
                .iter()
                .map(|request| argument(1, SeccompCmpOp::Eq, u64::from(*request)))
                .collect(),
            NotExecutable => Ok(vec![argument(
                2,
                SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64),
                0,
            )?]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "LQX_SECCOMP_CHILD";

    /// What a filtered thread does in the child process, by name.
    fn act(what: &str) {
        match what {
            "allowed" => {
                // Heap large and small, locks, time, the end of a thread.
                let big = std::hint::black_box(vec![1u8; 8 << 20]);
                drop(big);
                let _ = std::time::Instant::now();
                std::sync::Mutex::new(0)
                    .lock()
                    .map(|mut n| *n += 1)
                    .unwrap();
            }
            "open" => drop(std::fs::File::open("/")),
            "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "exec" => drop(Command::new("/bin/true").spawn()),
            // FIONREAD: an ioctl, but none of ours.
            "ioctl" => drop(rustix::io::ioctl_fionread(std::io::stderr())),
            other => panic!("{other}?"),
        }
    }

    #[test]
    fn child() {
        let Ok(what) = std::env::var(CHILD) else {
            return;
        };
        let (kind, what) = what.split_once(' ').unwrap();
        let kind = match kind {
            "main" => ThreadKind::Main,
            "vcpu" => ThreadKind::Vcpu,
            "flash" => ThreadKind::FlashVcpu,
            "reader" => ThreadKind::ImageReader,
            _ => ThreadKind::Worker,
        };
        let what = what.to_owned();
        std::thread::spawn(move || {
            apply(kind).unwrap();
            act(&what);
        })
        .join()
        .unwrap();
    }

    fn signal_of(task: &str) -> Option<i32> {
        let me = std::env::current_exe().unwrap();
        let args = ["--exact", "seccomp::tests::child", "--test-threads=1"];
        Command::new(me)
            .args(args)
            .env(CHILD, task)
            .output()
            .unwrap()
            .status
            .signal()
    }

    #[test]
    fn a_forbidden_call_kills_the_process_and_an_allowed_one_does_not() {
        for kind in ["main", "vcpu", "flash", "worker", "reader"] {
            assert_eq!(signal_of(&format!("{kind} allowed")), None, "{kind}");
            for what in ["open", "socket", "exec", "ioctl"] {
                assert_eq!(
                    signal_of(&format!("{kind} {what}")),
                    Some(libc::SIGSYS),
                    "{kind} {what}"
                );
            }
        }
    }
}
