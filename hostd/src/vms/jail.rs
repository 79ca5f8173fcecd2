//! The walls around one VM process, or one that reads an image: how it is born ([`spawn`]) and how it locks itself in ([`enter`]).
//!
//! ```text
//! daemon (root)                         child (root, new PID/mount/network/IPC/UTS namespaces, own cgroup)
//!   clone3 ───────────────────────────►   dup2 the descriptors, close the rest, execveat `hostd vmm`
//!                                         read the configuration, wait for the go-ahead
//!                                         enter(): session, limits, empty root, no capabilities,
//!                                                  own uid, no_new_privs, Landlock
//!                                         vmm::run (seccomp for each thread)
//! ```
//! Nothing here knows what a VM is made of.
// UNSAFETY: clone3 with namespaces, a pidfd and a target cgroup has no safe face anywhere, nor has the taking over of a
// descriptor that was inherited by number.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first descriptor number after the standard three: where a child's own descriptors begin.
pub const FIRST_FD: RawFd = 3;
/// Memory a child may lock, bytes: io_uring's registered buffers.
const MEMLOCK_MAX: u64 = 64 << 20;
/// The highest capability number tried when the bounding set is emptied; the kernel has 41 today.
const CAPABILITY_MAX: u32 = 63;

/// What a child needs for locking itself in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Its user and group id, shared with no other living VM.
    pub uid: u32,
    /// An empty folder of the host on which its empty root is mounted; seen by nobody afterwards.
    pub root: PathBuf,
    /// Most open descriptors.
    pub files_max: u64,
}

/// A child that was just born.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id in the daemon's namespace.
    pub pid: u32,
    /// The same, immune to reuse of the number.
    pub pidfd: OwnedFd,
}

/// What is handed to a child at birth.
#[derive(Debug)]
pub struct Birth<'a> {
    /// The program, opened with `O_PATH`.
    pub program: BorrowedFd<'a>,
    /// Its arguments, its own name first.
    pub args: &'a [&'a CStr],
    /// Its standard output and error.
    pub log: BorrowedFd<'a>,
    /// Its standard input.
    pub null: BorrowedFd<'a>,
    /// Descriptors it gets as [`FIRST_FD`], [`FIRST_FD`] + 1, … in this order. Nothing else is inherited.
    pub fds: &'a [BorrowedFd<'a>],
    /// The cgroup it is born into; absent: the daemon's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Gives birth to a child in namespaces of its own. Returns once it runs the program, or says why it does not.
///
/// # Errors
/// What the kernel said to `clone3`, or to the child before its `execveat`.
pub fn spawn(birth: &Birth<'_>) -> io::Result<Spawned> {
    let (errors, errors_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let targets = Targets::lay_out(birth, errors_child.as_fd())?;
    drop(errors_child);

    let mut argv: Vec<*const libc::c_char> = birth.args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];

    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is the documented default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let namespaces = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    args.flags = namespaces as u64 | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = birth.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack this is a fork: the child has a copy of everything, `args` and `argv`
    // included, and calls only `become_program`, which uses nothing but bare system calls.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        0 => become_program(&targets, &argv, &envp),
        -1 => Err(io::Error::last_os_error()),
        pid => {
            // SAFETY: the kernel stored a fresh descriptor here before clone3 returned; nobody else has it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            drop(targets);
            let mut errno = [0; 4];
            match std::fs::File::from(errors).read(&mut errno)? {
                0 => Ok(Spawned {
                    pid: u32::try_from(pid).map_err(io::Error::other)?,
                    pidfd,
                }),
                _ => {
                    let options = rustix::process::WaitIdOptions::EXITED;
                    rustix::process::waitid(
                        rustix::process::WaitId::PidFd(pidfd.as_fd()),
                        options,
                    )?;
                    Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
                }
            }
        }
    }
}

/// Not in the libc crate for this target as a 64-bit flag: handlers are reset in the child, so that none of the
/// daemon's runs there between clone and exec.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Born into a cgroup, before the first page is charged.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which descriptor goes where in the child. The sources all lie above the targets, so no `dup2` hits a source.
struct Targets {
    /// Source of target `index`.
    sources: Vec<OwnedFd>,
    errors: RawFd,
    program: RawFd,
}

impl Targets {
    fn lay_out(birth: &Birth<'_>, errors: BorrowedFd<'_>) -> io::Result<Self> {
        let stdio = [birth.null, birth.log, birth.log];
        let last = [errors, birth.program];
        let wanted = stdio.iter().chain(birth.fds).chain(&last);
        let above = RawFd::try_from(stdio.len() + birth.fds.len() + last.len())
            .map_err(io::Error::other)?;
        let sources = wanted
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, above))
            .collect::<Result<Vec<OwnedFd>, _>>()?;
        Ok(Self {
            sources,
            errors: above - 2,
            program: above - 1,
        })
    }
}

/// In the child: puts the descriptors in place, closes all others, becomes the program.
fn become_program(
    targets: &Targets,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> ! {
    // SAFETY: this runs in a copy of a process that may have had other threads, so only bare system calls are allowed:
    // no allocation, no lock, no panic. `argv` and `envp` end with a null pointer and point to live C strings.
    unsafe {
        let mut place: RawFd = 0;
        for source in &targets.sources {
            // The two of our own close at exec, the others stay.
            let flags = if place >= targets.errors {
                libc::O_CLOEXEC
            } else {
                0
            };
            if libc::syscall(libc::SYS_dup3, source.as_raw_fd(), place, flags) < 0 {
                give_up(targets.errors);
            }
            place += 1;
        }
        if libc::syscall(libc::SYS_close_range, place, u32::MAX, 0) < 0 {
            give_up(targets.errors);
        }
        let empty = c"".as_ptr();
        libc::syscall(
            libc::SYS_execveat,
            targets.program,
            empty,
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        give_up(targets.errors)
    }
}

/// In the child: tells the parent the error number and ends.
///
/// # Safety
/// Only after `clone3`, in the child.
unsafe fn give_up(errors: RawFd) -> ! {
    // SAFETY: bare system calls on plain values.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(
            libc::SYS_write,
            errors,
            (&raw const errno).cast::<libc::c_void>(),
            4,
        );
        libc::syscall(libc::SYS_exit_group, 127);
        // exit_group does not return; this only satisfies the type.
        libc::_exit(127)
    }
}

/// Takes over a descriptor that was inherited by number. Called once for each, first thing in a child's life, when
/// nothing in the process has opened anything yet.
pub(crate) fn inherited_file(fd: RawFd) -> std::fs::File {
    assert!(
        fd >= FIRST_FD,
        "the standard three belong to the standard library"
    );
    // SAFETY: by the protocol of `spawn` the descriptor is open, and the only callers, the starts of the `vmm` and
    // `convert` applets, take each number once.
    unsafe { std::fs::File::from_raw_fd(fd) }
}

/// A process, watched for its end from async code.
#[derive(Debug)]
pub struct Watched {
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Watches the process behind a pidfd. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// No room for another descriptor to be polled.
    pub fn new(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed before it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Self {
            pidfd: pidfd.map_err(io::Error::from)?,
        })
    }

    /// Returns when the process has ended.
    ///
    /// # Errors
    /// The runtime is going down.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }
}

/// Why a child could not lock itself in. It must not run then.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}")]
pub struct EnterError {
    step: &'static str,
    source: io::Error,
}

fn step(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> EnterError {
    move |errno| EnterError {
        step,
        source: errno.into(),
    }
}

/// How much of the jail the kernel could give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlocked {
    /// All that this program knows of.
    Fully,
    /// What this kernel knows of: an older Landlock.
    Partly,
    /// The kernel has none. The empty root, the lack of capabilities and seccomp remain.
    No,
}

/// Locks this process in for ever. Must be called while it has one thread, as root, in namespaces of its own.
///
/// # Errors
/// The first step that failed; the process is then somewhere in between and has to end.
pub fn enter(jail: &JailConfig) -> Result<Landlocked, EnterError> {
    rustix::process::setsid().map_err(step("start a session"))?;
    limit(Resource::Nofile, jail.files_max)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Memlock, MEMLOCK_MAX)?;
    empty_root(&jail.root)?;
    drop_privileges(jail.uid)?;
    landlock()
}

/// Lowers a limit for ever; where it is lower already it stays.
fn limit(resource: Resource, most: u64) -> Result<(), EnterError> {
    let now = rustix::process::getrlimit(resource).maximum;
    let most = Some(now.map_or(most, |now| now.min(most)));
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    rustix::process::setrlimit(resource, limit).map_err(step("set a resource limit"))
}

/// Replaces this process's view of the file system by an empty, read-only folder and forgets all else.
fn empty_root(place: &Path) -> Result<(), EnterError> {
    use rustix::mount;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change("/", private).map_err(step("make the mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount::mount(
        "none",
        place,
        "tmpfs",
        flags,
        c"size=4k,nr_inodes=2,mode=0555",
    )
    .map_err(step("mount an empty root"))?;
    mount::mount_remount(place, flags | MountFlags::RDONLY, c"")
        .map_err(step("make the empty root read-only"))?;
    rustix::process::chdir(place).map_err(step("go to the empty root"))?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The old root now lies over the new one; both are `.`. See pivot_root(2), "pivot_root(".", ".")".
            mount::unmount(".", UnmountFlags::DETACH).map_err(step("let go of the host's root"))?;
        }
        // The host's root is the initramfs itself, which can not be pivoted away: cover it, after everything mounted
        // on it is gone, and leave it.
        Err(rustix::io::Errno::INVAL) => {
            detach_others(place)?;
            mount::mount_move(".", "/").map_err(step("cover the host's root"))?;
            rustix::process::chroot(".").map_err(step("change to the empty root"))?;
        }
        Err(errno) => return Err(step("change the root")(errno)),
    }
    rustix::process::chdir("/").map_err(step("go to the new root"))
}

/// Detaches every mount of this namespace but the root and the folders that lead to `place`.
fn detach_others(place: &Path) -> Result<(), EnterError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|source| EnterError {
        step: "read the mount table",
        source,
    })?;
    // Later mounts may lie on earlier ones: last first. The fifth field is the mount point, see proc(5).
    let points: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    for point in points.into_iter().rev() {
        if !place.starts_with(point) {
            // One that went away together with its parent is no loss.
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
    }
    Ok(())
}

/// No capability in any set, an id of its own, and no way to gain anything by an exec.
fn drop_privileges(uid: u32) -> Result<(), EnterError> {
    for capability in 0..=CAPABILITY_MAX {
        // SAFETY: a plain prctl with a number; the kernel answers EINVAL past the last capability it has.
        let dropped = unsafe {
            libc::prctl(
                libc::PR_CAPBSET_DROP,
                libc::c_ulong::from(capability),
                0,
                0,
                0,
            )
        };
        if dropped != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(EnterError {
                step: "drop a capability",
                source: error,
            });
        }
    }
    let (user, group) = (
        rustix::process::Uid::from_raw(uid),
        rustix::process::Gid::from_raw(uid),
    );
    // One thread, so the kernel's per-thread calls are enough and glibc's broadcasting ones are not needed.
    rustix::thread::set_thread_groups(&[]).map_err(step("leave all groups"))?;
    rustix::thread::set_thread_res_gid(group, group, group).map_err(step("change the group id"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(step("change the user id"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(step("drop all capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))
}

/// Denies every file and network access that the running kernel's Landlock can deny: nothing is allowed.
fn landlock() -> Result<Landlocked, EnterError> {
    let newest = ABI::V6;
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(newest))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(newest)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.restrict_self())
        .map_err(|error| EnterError {
            step: "restrict itself by Landlock",
            source: io::Error::other(error),
        })?;
    Ok(match restricted.ruleset {
        RulesetStatus::FullyEnforced => Landlocked::Fully,
        RulesetStatus::PartiallyEnforced => Landlocked::Partly,
        RulesetStatus::NotEnforced => Landlocked::No,
    })
}
