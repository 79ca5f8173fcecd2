//! A vCPU's thread and its exits.
//!
//! ```text
//!            ┌──────────── kick: signal, `immediate_exit` ───────────┐
//!            ▼                                                       │
//!   gate ─► KVM_RUN ─► exit ─► bus ─► gate …          pause, stop ───┘
//!    │ paused: wait here
//!    └ stopped: the thread ends
//! ```
//! A kick cannot be lost: the handler runs on the vCPU's own thread and sets `immediate_exit`, so whether the signal
//! comes before, in or after `KVM_RUN`, the thread passes the gate once more before the guest goes on.
#![allow(unsafe_code)] // UNSAFETY: `immediate_exit` is set from a signal handler; string I/O needs the union in `kvm_run`.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{self, Killable, SIGRTMIN};

use crate::bus::Bus;
use crate::control::ExitReason;
use crate::metrics::{Counter, Registry};
use crate::seccomp::{self, SeccompError, ThreadKind};
use crate::vm::ExitSignal;

/// A vCPU thread's stack. Only pages that are used count.
const STACK_BYTES: usize = 256 << 10;
/// A kick is repeated at this interval until everybody stands.
const KICK_EVERY: Duration = Duration::from_millis(20);

/// The two address spaces a guest's accesses go to.
pub struct Buses {
    /// Ports.
    pub pio: Bus,
    /// Physical memory that is not RAM.
    pub mmio: Bus,
}

/// Why the vCPUs do not run.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The handler for kicks could not be installed.
    #[error("could not install the signal handler of vCPU threads")]
    Handler(#[source] io::Error),
    /// A thread could not be made.
    #[error("could not start the thread of vCPU {index}")]
    Spawn {
        /// Which.
        index: usize,
        /// Why.
        source: io::Error,
    },
    /// A thread could not restrict itself.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// A thread died while starting.
    #[error("a vCPU thread ended while starting")]
    Died,
    /// A vCPU did not stop in time.
    #[error("a vCPU did not stop within {} s", .0.as_secs())]
    Stuck(Duration),
}

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// Where all vCPUs pass between two runs.
struct Gate {
    wanted: AtomicU8,
    standing: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, wanted: u8) {
        let _standing = self.lock();
        self.wanted.store(wanted, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits while paused. `None` to stop, else whether there was a pause.
    fn pass(&self) -> Option<bool> {
        if self.wanted.load(Ordering::SeqCst) == RUN {
            return Some(false);
        }
        let mut standing = self.lock();
        *standing += 1;
        self.changed.notify_all();
        while self.wanted.load(Ordering::SeqCst) == PAUSE {
            standing = self
                .changed
                .wait(standing)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *standing -= 1;
        (self.wanted.load(Ordering::SeqCst) == RUN).then_some(true)
    }

    /// The thread has left for good, which counts as standing.
    fn leave(&self) {
        *self.lock() += 1;
        self.changed.notify_all();
    }
}

/// All vCPUs of a machine. They begin paused; dropping this stops them.
pub struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread of this kind for each of `vcpus` and returns once all of them have applied their filter and stand at the gate.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        kind: ThreadKind,
        buses: &Arc<Buses>,
        exit: &ExitSignal,
        metrics: &Registry,
    ) -> Result<Self, VcpuError> {
        signal::register_signal_handler(SIGRTMIN(), kicked)
            .map_err(|errno| VcpuError::Handler(errno.into()))?;
        let gate = Arc::new(Gate {
            wanted: AtomicU8::new(PAUSE),
            standing: Mutex::new(0),
            changed: Condvar::new(),
        });
        let mut started = Self {
            gate,
            threads: vec![],
        };
        let (ready, readiness) = mpsc::channel();
        for (index, fd) in vcpus.into_iter().enumerate() {
            let vcpu = Vcpu {
                fd,
                kind,
                buses: Arc::clone(buses),
                gate: Arc::clone(&started.gate),
                exit: exit.clone(),
                counters: Counters::new(index, metrics),
            };
            let ready = ready.clone();
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || vcpu.main(ready))
                .map_err(|source| VcpuError::Spawn { index, source })?;
            started.threads.push(thread);
        }
        drop(ready);
        for _ in &started.threads {
            readiness.recv().map_err(|_| VcpuError::Died)??;
        }
        Ok(started)
    }

    /// Returns once every vCPU stands.
    pub fn pause(&self, within: Duration) -> Result<(), VcpuError> {
        self.gate.set(PAUSE);
        let deadline = Instant::now() + within;
        let mut standing = self.gate.lock();
        while *standing < self.threads.len() {
            if Instant::now() >= deadline {
                drop(standing);
                self.resume();
                return Err(VcpuError::Stuck(within));
            }
            self.kick();
            let waited = self.gate.changed.wait_timeout(standing, KICK_EVERY);
            standing = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lets all vCPUs go on.
    pub fn resume(&self) {
        self.gate.set(RUN);
    }

    /// Ends all threads.
    pub fn stop(&mut self) {
        self.gate.set(STOP);
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.kick();
            thread::sleep(Duration::from_millis(1));
        }
        for thread in self.threads.drain(..) {
            // A panic of a vCPU thread has been told by its hook; its machine ends either way.
            let _ = thread.join();
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // It fails for a thread that has ended.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

thread_local! {
    /// The running vCPU's page shared with KVM, for the signal handler.
    static SHARED: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = SHARED.get();
    if !run.is_null() {
        // SAFETY: the pointer was set by this very thread, to a mapping its `VcpuFd` owns, and is cleared before that is
        // dropped; a volatile byte store is all that happens, as the kernel's interface demands.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

struct Counters {
    io: Counter,
    mmio: Counter,
    kicks: Counter,
}

impl Counters {
    fn new(index: usize, metrics: &Registry) -> Self {
        let counter = |what: &str| metrics.counter(format!("vcpu{index}_{what}_total"));
        Self {
            io: counter("io_exits"),
            mmio: counter("mmio_exits"),
            kicks: counter("kicks"),
        }
    }
}

struct Vcpu {
    fd: VcpuFd,
    kind: ThreadKind,
    buses: Arc<Buses>,
    gate: Arc<Gate>,
    exit: ExitSignal,
    counters: Counters,
}

impl Vcpu {
    fn main(mut self, ready: mpsc::Sender<Result<(), SeccompError>>) {
        SHARED.set(self.fd.get_kvm_run());
        let filtered = seccomp::apply(self.kind);
        let go = filtered.is_ok();
        // The receiver waits for exactly this.
        let _ = ready.send(filtered);
        drop(ready);
        // A panic in a device must not leave the machine without this vCPU and without a word.
        let run = std::panic::AssertUnwindSafe(|| {
            if go {
                self.run()
            }
        });
        if std::panic::catch_unwind(run).is_err() {
            self.exit.end(ExitReason::Error {
                message: "a vCPU thread panicked".into(),
            });
        }
        SHARED.set(ptr::null_mut());
        self.gate.leave();
    }

    fn run(&mut self) {
        while !self.exit.is_set() {
            // First clear, then look: a kick in between is seen by KVM_RUN.
            self.fd.set_kvm_immediate_exit(0);
            compiler_fence(Ordering::SeqCst);
            match self.gate.pass() {
                None => return,
                Some(paused) => {
                    if paused {
                        // Guests without the KVM clock have none to be told; EINVAL says so.
                        let _ = self.fd.kvmclock_ctrl();
                    }
                }
            }
            if let Err(reason) = self.step() {
                self.exit.end(reason);
            }
        }
    }

    /// Runs the guest to its next exit and serves that.
    fn step(&mut self) -> Result<(), ExitReason> {
        let broken = |what: String| Err(ExitReason::Error { message: what });
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let data = ptr::from_ref(data);
                self.port_out(port, data)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let data = ptr::from_mut(data);
                self.port_in(port, data)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.counters.mmio.count();
                self.buses.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.counters.mmio.count();
                self.buses.mmio.write(address, data);
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Shutdown) => return Err(ExitReason::TripleFault),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return broken(format!(
                    "KVM could not enter the guest (reason {reason:#x} on CPU {cpu})"
                ));
            }
            Ok(VcpuExit::InternalError) => return broken(self.internal_error()),
            Ok(other) => return broken(format!("unexpected KVM exit {other:?}")),
            Err(errno) if errno.errno() == libc::EINTR => self.counters.kicks.count(),
            Err(errno) if errno.errno() == libc::EAGAIN => {}
            Err(errno) => return broken(format!("KVM_RUN failed: {}", io::Error::from(errno))),
        }
        Ok(())
    }

    fn port_out(&mut self, port: u16, data: *const [u8]) {
        self.counters.io.count();
        let unit = self.unit();
        // SAFETY: `data` points into the `kvm_run` mapping that `self.fd` owns, at the data of the exit just taken, and
        // nobody writes it until the next `KVM_RUN`.
        let data = unsafe { &*data };
        for item in data.chunks(unit) {
            self.buses.pio.write(u64::from(port), item);
        }
    }

    fn port_in(&mut self, port: u16, data: *mut [u8]) {
        self.counters.io.count();
        let unit = self.unit();
        // SAFETY: as in `port_out`, and nobody reads it until the next `KVM_RUN`.
        let data = unsafe { &mut *data };
        for item in data.chunks_mut(unit) {
            self.buses.pio.read(u64::from(port), item);
        }
    }

    /// The width of one port access: string instructions come as several in one exit.
    fn unit(&mut self) -> usize {
        let run = self.fd.get_kvm_run();
        // SAFETY: called only after an I/O exit, for which the kernel has filled this member of the union.
        usize::from(unsafe { run.__bindgen_anon_1.io.size }).max(1)
    }

    fn internal_error(&mut self) -> String {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        let run = self.fd.get_kvm_run();
        // SAFETY: called only after an internal-error exit, for which the kernel has filled this member of the union.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        format!("KVM internal error {suberror} at guest instruction {rip:#x}")
    }
}
