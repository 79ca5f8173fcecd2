//! The live machine.
//!
//! ```text
//!             ┌──────── pause ────────┐
//!  building ─► running             paused ─► exited
//!             └─◄────── resume ───────┘  ▲      ▲
//!                  └── guest's end, stop, reset ┘
//! ```
//! One thread, this one, owns the event loop: control and serial connections, and the bell that says that the guest has
//! ended. vCPUs and queue workers have threads of their own and never wait for it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::builder::{self, BuildError, Machine};
use crate::config::VmmConfig;
use crate::control::server::Server;
use crate::control::{
    Answer, Event, ExitReason, Message, Operation, Outcome, Refusal, RefusalCode, Reply, State,
    Status,
};
use crate::devices::serial::sockets::SerialSockets;
use crate::event_loop::{EventLoop, Interest, Ready, Token, Wake};
use crate::fds;
use crate::machine::MachinePlan;
use crate::seccomp::{self, ThreadKind};

/// What is left in a status file beyond this is not ours to blank.
const STATUS_MAX_BYTES: usize = 64 << 10;
/// How long a pause may take: a vCPU can be inside a device's lock, never longer than that device's slowest step.
const PAUSE_WITHIN: Duration = Duration::from_secs(5);
/// How long a disk may take to grow: no longer than its slowest request of the kind that blocks.
const RESIZE_WITHIN: Duration = Duration::from_secs(5);
/// How long the last words may take to reach slow readers.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);

/// The guest's way to end, shared by everything that can end it. The first reason stays.
#[derive(Debug, Clone)]
pub struct ExitSignal(Arc<ExitState>);

#[derive(Debug)]
struct ExitState {
    reason: Mutex<Option<ExitReason>>,
    set: AtomicBool,
    wake: Wake,
}

impl ExitSignal {
    /// Not given yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(ExitState {
            reason: Mutex::default(),
            set: AtomicBool::new(false),
            wake: Wake::new()?,
        })))
    }

    /// Ends the machine, unless something has already.
    pub fn end(&self, reason: ExitReason) {
        self.0
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.0.set.store(true, Ordering::SeqCst);
        self.0.wake.ring();
    }

    /// Whether it has been given.
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::SeqCst)
    }

    /// Why the machine ends, if it does.
    pub fn reason(&self) -> Option<ExitReason> {
        self.0
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Rings when it is given.
    pub fn wake(&self) -> &Wake {
        &self.0.wake
    }
}

/// Builds the machine, runs it to its end and says why it ended.
///
/// Takes over every descriptor that `config` names. Restricts the system calls of its threads, this one included, before
/// the first guest instruction: the caller's thread can do little more afterwards than return and end the process.
pub fn run(config: VmmConfig) -> ExitReason {
    let started = Instant::now();
    let name = config.name.clone();
    let taken = fds::take("the status file", config.status_fd);
    let status = match taken.map(|fd| StatusFile::new(File::from(fd))) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            return ExitReason::Error {
                message: format!("could not use the status file: {error}"),
            };
        }
        Err(error) => {
            return ExitReason::Error {
                message: chain(&error),
            };
        }
    };
    let told = Teller {
        name,
        started,
        status,
    };
    told.tell(State::Building, None);
    let reason = match Vm::build(config, told.started) {
        Ok(vm) => vm.live(&told),
        Err(error) => ExitReason::Error {
            message: chain(&error),
        },
    };
    told.tell(State::Exited, Some(reason.clone()));
    reason
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// The status file: always one JSON document, padded with blanks to the length of the longest so far.
struct StatusFile {
    file: File,
    length: AtomicUsize,
}

impl StatusFile {
    fn new(file: File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len())
            .unwrap_or(0)
            .min(STATUS_MAX_BYTES);
        Ok(Self {
            file,
            length: AtomicUsize::new(length),
        })
    }

    /// One write over all there was, and no truncation: whoever reads at any moment, or after a crash at any moment, finds
    /// the old document or the new one.
    fn write(&self, status: &Status) -> io::Result<()> {
        let mut document = serde_json::to_vec(status)?;
        let length = self.length.load(Ordering::Relaxed).max(document.len() + 1);
        document.resize(length - 1, b' ');
        document.push(b'\n');
        self.length.store(length, Ordering::Relaxed);
        self.file.write_all_at(&document, 0)
    }
}

/// Who knows what to put into a [`Status`].
struct Teller {
    name: String,
    started: Instant,
    status: StatusFile,
}

impl Teller {
    fn status(&self, state: State, exit: Option<ExitReason>) -> Status {
        let uptime_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Status {
            name: self.name.clone(),
            pid: std::process::id(),
            state,
            exit,
            uptime_ms,
        }
    }

    fn tell(&self, state: State, exit: Option<ExitReason>) {
        if let Err(error) = self.status.write(&self.status(state, exit)) {
            // A full disk under the status file is the supervisor's to notice; the guest runs on.
            eprintln!("vmm: could not write the status file: {error}");
        }
    }
}

const EXIT: Token = Token::Part(0);
const CONTROL: Token = Token::Part(1);
const SERIAL: Token = Token::Part(2);
const COM1: Token = Token::Part(3);

struct Vm {
    machine: Machine,
    events: EventLoop,
    control: Server,
    serial: SerialSockets,
    state: State,
}

impl Vm {
    fn build(config: VmmConfig, started: Instant) -> Result<Self, BuildError> {
        let plan = MachinePlan::new(config)?;
        let control: OwnedFd = fds::take("the control socket", plan.config.control_fd)?;
        let serial: OwnedFd = fds::take("the serial socket", plan.config.serial_fd)?;
        let machine = builder::build(&plan, started)?;

        let events = EventLoop::new().map_err(BuildError::EventLoop)?;
        let control = Server::new(control).map_err(BuildError::EventLoop)?;
        let serial = SerialSockets::new(serial).map_err(BuildError::EventLoop)?;
        let parts = [
            events.add(machine.exit.wake(), EXIT, Interest::READ),
            events.add(control.listener(), CONTROL, Interest::READ),
            events.add(serial.listener(), SERIAL, Interest::READ),
            events.add(&machine.com1_wake, COM1, Interest::READ),
        ];
        parts
            .into_iter()
            .collect::<io::Result<()>>()
            .map_err(BuildError::EventLoop)?;
        seccomp::apply(ThreadKind::Main)?;
        Ok(Self {
            machine,
            events,
            control,
            serial,
            state: State::Building,
        })
    }

    fn live(mut self, told: &Teller) -> ExitReason {
        self.state = State::Running;
        told.tell(self.state, None);
        self.machine.first_run();
        let reason = loop {
            if let Some(reason) = self.machine.exit.reason() {
                break reason;
            }
            match self.events.wait(None) {
                Ok(ready) => ready.into_iter().for_each(|ready| self.handle(ready, told)),
                Err(error) => {
                    break ExitReason::Error {
                        message: format!("epoll_wait failed: {error}"),
                    };
                }
            }
        };
        self.machine.vcpus.stop();
        self.state = State::Exited;
        told.tell(self.state, Some(reason.clone()));
        self.farewell(told, reason.clone());
        reason
    }

    fn handle(&mut self, ready: Ready, told: &Teller) {
        match ready.token {
            EXIT => drop(self.machine.exit.wake().clear()),
            CONTROL => {
                for id in self.control.accept(&self.events) {
                    if let Some(greeting) = self.greeting() {
                        self.control
                            .send(&self.events, id, &Message::Event(greeting));
                    }
                }
            }
            SERIAL => self.serial.accept(&self.events),
            COM1 => {
                self.machine.com1_wake.clear();
                self.serial.woken(&self.events, &self.machine.com1);
            }
            Token::Control(id) => {
                for request in self.control.ready(&self.events, id, ready) {
                    let (outcome, event) = self.perform(request.op, told);
                    let reply = Message::Reply(Reply {
                        id: request.id,
                        outcome,
                    });
                    self.control.send(&self.events, id, &reply);
                    if let Some(event) = event {
                        told.tell(self.state, None);
                        self.control.broadcast(&self.events, &Message::Event(event));
                    }
                }
            }
            Token::Serial(id) => self
                .serial
                .ready(&self.events, &self.machine.com1, id, ready),
            Token::Part(_) => {}
        }
    }

    fn greeting(&self) -> Option<Event> {
        match self.state {
            State::Running => Some(Event::Running),
            State::Paused => Some(Event::Paused),
            State::Building | State::Exited => None,
        }
    }

    fn perform(&mut self, operation: Operation, told: &Teller) -> (Outcome, Option<Event>) {
        let done = Outcome::Result(Answer::Done);
        match (operation, self.state) {
            (Operation::Status, state) => (
                Outcome::Result(Answer::Status(
                    told.status(state, self.machine.exit.reason()),
                )),
                None,
            ),
            (Operation::Metrics, _) => {
                let counters = self.machine.read_metrics();
                (Outcome::Result(Answer::Metrics { counters }), None)
            }
            (Operation::Pause, State::Running) => match self.machine.vcpus.pause(PAUSE_WITHIN) {
                Ok(()) => {
                    self.state = State::Paused;
                    (done, Some(Event::Paused))
                }
                Err(error) => (refuse(RefusalCode::Failed, chain(&error)), None),
            },
            (Operation::Resume, State::Paused) => {
                self.machine.vcpus.resume();
                self.state = State::Running;
                (done, Some(Event::Resumed))
            }
            (Operation::Pause | Operation::Resume, state) => {
                let state = format!("{state:?}").to_lowercase();
                (
                    refuse(RefusalCode::WrongState, format!("the machine is {state}")),
                    None,
                )
            }
            (Operation::ResizeDisk { disk, bytes }, _) => {
                let resizer = self.machine.disks.get(usize::from(disk));
                let result = resizer.map(|resizer| resizer.resize(bytes, RESIZE_WITHIN));
                let outcome = match result {
                    Some(Ok(_)) => done,
                    Some(Err(error)) => refuse(RefusalCode::Failed, chain(&error)),
                    None => refuse(RefusalCode::Failed, format!("there is no disk {disk}")),
                };
                (outcome, None)
            }
            (Operation::PowerButton, _) => {
                self.machine
                    .power
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .press();
                (done, None)
            }
            (Operation::Reset, _) => {
                self.machine.exit.end(ExitReason::GuestReset);
                (done, None)
            }
            (Operation::Stop, _) => {
                self.machine.exit.end(ExitReason::Stopped);
                (done, None)
            }
        }
    }

    /// Tells everybody, and lets what the guest printed last reach its readers, for a moment.
    fn farewell(&mut self, told: &Teller, reason: ExitReason) {
        // Who connected while a short-lived guest ran has not been let in yet.
        self.control.accept(&self.events);
        self.serial.accept(&self.events);
        self.control
            .broadcast(&self.events, &Message::Event(Event::Exiting { reason }));
        self.serial.woken(&self.events, &self.machine.com1);
        let deadline = Instant::now() + FAREWELL_WITHIN;
        while !(self.control.is_idle() && self.serial.are_up_to_date(&self.machine.com1)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.wait(Some(left)) {
                Ok(ready) if !left.is_zero() => {
                    ready.into_iter().for_each(|ready| self.handle(ready, told))
                }
                _ => break,
            }
        }
    }
}

fn refuse(code: RefusalCode, message: String) -> Outcome {
    Outcome::Error(Refusal { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_end_stays() {
        let exit = ExitSignal::new().unwrap();
        assert!(!exit.is_set());
        exit.end(ExitReason::GuestPowerOff);
        exit.end(ExitReason::Stopped);
        assert_eq!(exit.reason(), Some(ExitReason::GuestPowerOff));
        assert!(exit.wake().clear());
    }

    #[test]
    fn the_status_file_is_one_document_even_over_a_longer_one() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b'x'; 700], 0).unwrap();
        let status = StatusFile::new(file.try_clone().unwrap()).unwrap();
        let told = Teller {
            name: "web".into(),
            started: Instant::now(),
            status,
        };
        let message = "x".repeat(900);
        for (state, exit) in [
            (State::Building, None),
            (State::Exited, Some(ExitReason::Error { message })),
            (State::Running, None),
        ] {
            told.tell(state, exit.clone());
            let mut content = vec![0; 4096];
            let len = file.read_at(&mut content, 0).unwrap();
            let read: Status = serde_json::from_slice(&content[..len]).unwrap();
            assert_eq!((read.state, read.exit), (state, exit));
            assert_eq!(Status::from_file(&content[..len]).unwrap().state, state);
        }
    }

    #[test]
    fn a_machine_that_cannot_be_built_says_so_in_the_status_file() {
        use std::os::fd::IntoRawFd;
        let file = tempfile::tempfile().unwrap();
        let config = VmmConfig {
            name: "web".into(),
            memory_mib: 1,
            vcpus: 1,
            boot: crate::config::Boot::Kernel {
                kernel_fd: 1000,
                initrd_fd: None,
                cmdline: String::new(),
            },
            disks: vec![],
            nics: vec![],
            rng: false,
            kvm_fd: 1001,
            control_fd: 1002,
            serial_fd: 1003,
            status_fd: file.try_clone().unwrap().into_raw_fd(),
        };
        let reason = run(config);
        let mut content = vec![0; 4096];
        let len = file.read_at(&mut content, 0).unwrap();
        let status = Status::from_file(&content[..len]).unwrap();
        assert_eq!(status.exit, Some(reason));
        assert_eq!(status.state, State::Exited);
    }
}
