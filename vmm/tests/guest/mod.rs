//! A machine in a test: descriptors, sockets, a thread that runs it, and ways to talk to it.
//!
//! Guests are small programs made by [`code`], wrapped as kernels, or real kernels named by `LQX_TEST_KERNEL`.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // Each test file uses its part of this.

pub mod code;
pub mod initramfs;
pub mod loop_device;
pub mod shell;
pub mod tap;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm::config::{Boot, DiskConfig, NicConfig, VmmConfig};
use vmm::control::{
    Answer, Event, ExitReason, Message, Operation, Outcome, Refusal, Request, Status,
};

/// Emulated hosts are slow, and shared ones slower.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// `/dev/kvm`, or the reason to skip on standard error.
pub fn kvm() -> Option<File> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("SKIP: /dev/kvm: {error}");
            None
        }
    }
}

/// Kernels named by `LQX_TEST_KERNEL` (paths separated by colons), or the reason to skip on standard error.
pub fn kernels() -> Vec<String> {
    match std::env::var("LQX_TEST_KERNEL") {
        Ok(list) if !list.is_empty() => list.split(':').map(str::to_owned).collect(),
        _ => {
            eprintln!("SKIP: LQX_TEST_KERNEL names no guest kernel");
            vec![]
        }
    }
}

/// Kernels of [`kernels`], each with its module folder from `LQX_TEST_MODULES`, or the reason to skip.
pub fn kernels_with_modules() -> Vec<(String, String)> {
    match std::env::var("LQX_TEST_MODULES") {
        Ok(list) if !list.is_empty() => kernels()
            .into_iter()
            .zip(list.split(':').map(str::to_owned))
            .collect(),
        _ => {
            eprintln!("SKIP: LQX_TEST_MODULES names no folders of kernel modules");
            vec![]
        }
    }
}

/// What to build; the rest is taken care of.
pub struct Spec {
    /// Code and variables: they come instead of a kernel.
    pub firmware: Option<(File, File)>,
    pub kernel: File,
    pub initrd: Option<File>,
    pub cmdline: String,
    pub memory_mib: u64,
    pub vcpus: u8,
    pub disks: Vec<DiskConfig>,
    pub nics: Vec<NicConfig>,
    pub rng: bool,
}

impl Spec {
    /// A small machine for one of our own programs.
    pub fn program(code: &[u8]) -> Self {
        Self {
            firmware: None,
            kernel: file(code),
            initrd: None,
            cmdline: String::new(),
            memory_mib: 16,
            vcpus: 1,
            disks: vec![],
            nics: vec![],
            rng: false,
        }
    }

    /// A machine for a real Linux.
    pub fn linux(kernel: &str, initrd: File) -> Self {
        let cmdline = "console=ttyS0 no_timer_check tsc=reliable panic=-1 reboot=k,acpi";
        Self {
            kernel: File::open(kernel).unwrap(),
            initrd: Some(initrd),
            cmdline: cmdline.into(),
            memory_mib: 256,
            ..Self::program(&[])
        }
    }
}

/// A file in memory with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A running machine.
pub struct Guest {
    control: BufReader<UnixStream>,
    control_address: SocketAddr,
    serial_address: SocketAddr,
    serial: UnixStream,
    output: String,
    status: File,
    thread: Option<JoinHandle<ExitReason>>,
    next: u64,
    /// Events that came while waiting for replies.
    pub events: Vec<Event>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn listen(what: &str) -> (SocketAddr, UnixListener) {
    let name = format!(
        "lqx-{what}-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (address.clone(), UnixListener::bind_addr(&address).unwrap())
}

fn connect(address: &SocketAddr) -> UnixStream {
    let stream = UnixStream::connect_addr(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Guest {
    /// Builds and runs a machine on a thread of its own.
    pub fn start(kvm: File, spec: Spec) -> Self {
        let (control_address, control) = listen("control");
        let (serial_address, serial) = listen("serial");
        let status = tempfile::tempfile().unwrap();
        let config = VmmConfig {
            name: "test".into(),
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            boot: match spec.firmware {
                Some((code, variables)) => Boot::Firmware {
                    code_fd: code.into_raw_fd(),
                    vars_fd: variables.into_raw_fd(),
                },
                None => Boot::Kernel {
                    kernel_fd: spec.kernel.into_raw_fd(),
                    initrd_fd: spec.initrd.map(IntoRawFd::into_raw_fd),
                    cmdline: spec.cmdline,
                },
            },
            disks: spec.disks,
            nics: spec.nics,
            rng: spec.rng,
            kvm_fd: kvm.into_raw_fd(),
            control_fd: control.into_raw_fd(),
            serial_fd: serial.into_raw_fd(),
            status_fd: status.try_clone().unwrap().into_raw_fd(),
        };
        // Connections wait in the listeners' backlogs until the machine is built.
        let control = BufReader::new(connect(&control_address));
        let serial = connect(&serial_address);
        let thread = std::thread::Builder::new()
            .name("vmm".into())
            .spawn(move || vmm::run(config))
            .unwrap();
        Self {
            control,
            control_address,
            serial_address,
            serial,
            output: String::new(),
            status,
            thread: Some(thread),
            next: 1,
            events: vec![],
        }
    }

    /// One more control connection.
    pub fn another_control(&self) -> BufReader<UnixStream> {
        BufReader::new(connect(&self.control_address))
    }

    /// One more view of COM1.
    pub fn another_serial(&self) -> UnixStream {
        connect(&self.serial_address)
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, op: Operation) -> Result<Answer, Refusal> {
        let id = self.next;
        self.next += 1;
        let line = serde_json::to_string(&Request { id, op }).unwrap() + "\n";
        self.control.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            match self.message() {
                Message::Event(event) => self.events.push(event),
                Message::Reply(reply) if reply.id == id => match reply.outcome {
                    Outcome::Result(answer) => return Ok(answer),
                    Outcome::Error(refusal) => return Err(refusal),
                },
                Message::Reply(other) => panic!("a reply nobody asked for: {other:?}"),
            }
        }
    }

    /// Asks without waiting: the machine may be at its end.
    pub fn try_ask(&mut self, op: Operation) -> std::io::Result<()> {
        let id = 1_000_000 + self.next;
        let line = serde_json::to_string(&Request { id, op }).unwrap() + "\n";
        self.control.get_mut().write_all(line.as_bytes())
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    fn message(&mut self) -> Message {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line:?}; output so far: {}", self.output))
    }

    /// Waits for an event.
    pub fn wait_event(&mut self, wanted: &Event) {
        while !self.events.contains(wanted) {
            match self.message() {
                Message::Event(event) => self.events.push(event),
                Message::Reply(other) => panic!("a reply nobody asked for: {other:?}"),
            }
        }
    }

    /// A counter.
    pub fn metric(&mut self, name: &str) -> u64 {
        match self.ask(Operation::Metrics) {
            Ok(Answer::Metrics { counters }) => *counters
                .get(name)
                .unwrap_or_else(|| panic!("no {name}: {counters:?}")),
            other => panic!("{other:?}"),
        }
    }

    /// Types into COM1.
    pub fn type_in(&mut self, text: &str) {
        self.serial.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the output contains `text`, and returns all of it so far.
    pub fn wait_output(&mut self, text: &str) -> &str {
        let mut chunk = [0; 4096];
        while !self.output.contains(text) {
            match self.serial.read(&mut chunk) {
                Ok(count @ 1..) => self.output += &String::from_utf8_lossy(&chunk[..count]),
                end => panic!(
                    "{end:?} before {text:?}; exit {:?}; output:\n{}",
                    self.status().exit,
                    self.output
                ),
            }
        }
        &self.output
    }

    /// The output until now; waits a moment for more.
    pub fn output_now(&mut self) -> &str {
        self.serial
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut chunk = [0; 4096];
        if let Ok(count) = self.serial.read(&mut chunk) {
            self.output += &String::from_utf8_lossy(&chunk[..count]);
        }
        self.serial.set_read_timeout(Some(PATIENCE)).unwrap();
        &self.output
    }

    /// Reads COM1 for a while that must bring nothing.
    pub fn assert_silent(&mut self, during: Duration) {
        self.serial.set_read_timeout(Some(during)).unwrap();
        let got = self.serial.read(&mut [0; 64]);
        assert!(got.is_err(), "{got:?} bytes of output");
        self.serial.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// What the status file says.
    pub fn status(&self) -> Status {
        let mut content = vec![];
        let mut file = &self.status;
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut content).unwrap();
        Status::from_file(&content).unwrap()
    }

    /// Waits for the end; the status file must agree. Returns why, and all output.
    pub fn wait_end(mut self) -> (ExitReason, String) {
        let deadline = Instant::now() + PATIENCE;
        let thread = self.thread.take().unwrap();
        while !thread.is_finished() {
            assert!(
                Instant::now() < deadline,
                "still running; output so far:\n{}",
                self.rest()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let reason = thread.join().unwrap();
        assert_eq!(self.status().exit, Some(reason.clone()));
        let output = self.rest();
        (reason, output)
    }

    fn rest(&mut self) -> String {
        self.serial
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let mut rest = vec![];
        // Times out while the machine lives; what came until then is kept.
        let _ = self.serial.read_to_end(&mut rest);
        self.output += &String::from_utf8_lossy(&rest);
        self.output.clone()
    }
}
