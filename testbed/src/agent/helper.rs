//! A helper beside the product's own PID 1, for tests that have to hurt something inside an appliance.
//!
//! The testbed lays this program over the initramfs of one boot and names it as `rdinit`. It starts a copy of itself that
//! listens on a virtio-serial port and becomes the product's `/init`. What the copy sees is what PID 1 sees, by way of
//! `/proc/1/root`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::FallocateFlags;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{load_modules, mount_at};

/// Our own mounts, out of the product's way.
const PROC: &str = "/lab/proc";
const DEV: &str = "/lab/dev";

/// What the testbed asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// All processes.
    Processes,
    /// SIGKILL.
    Kill {
        /// Which.
        pid: i32,
    },
    /// A file's text.
    Read {
        /// As PID 1 sees it; `/proc/…` is read from our own mount.
        path: String,
    },
    /// What the kernel of the appliance said since it booted.
    KernelLog,
    /// Take up the free space of a file system.
    Fill {
        /// The file to make.
        path: String,
        /// What stays free.
        leave_mib: u64,
    },
    /// Remove a file.
    Remove {
        /// Which.
        path: String,
    },
    /// A TCP exchange.
    Tcp {
        /// Address and port.
        address: String,
        /// What to say.
        send: String,
    },
    /// An ICMP echo.
    Ping {
        /// IPv4 address.
        address: String,
    },
}

/// What the helper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// Processes.
    Processes(Vec<Process>),
    /// Text.
    Text(String),
    /// A time.
    Milliseconds(f64),
    /// Could not.
    Failed(String),
}

/// A process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Its id in the appliance.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its user.
    pub uid: u32,
    /// Its command line; empty for kernel threads.
    pub arguments: Vec<String>,
    /// Resident memory.
    pub rss_kib: u64,
    /// Resident memory, shared pages divided among their users.
    pub pss_kib: u64,
    /// The part of that in shared memory objects: for a VM's process, its guest's memory.
    pub pss_shared_kib: u64,
}

/// As PID 1: starts the copy and becomes `/init`. Comes back only with an error.
pub fn become_init() -> Result<()> {
    load_modules()?;
    // The copy is a child of PID 1 and so of the product's init, which reaps it like any other orphan.
    Command::new("/lab-agent")
        .arg("helper")
        .spawn()
        .context("starting the helper")?;
    Err(Command::new("/init").exec()).context("starting /init")
}

/// As the copy: answers until the machine is off.
pub fn serve() -> Result<()> {
    mount_at("dev", DEV, "devtmpfs", "")?;
    let mut port = super::port(DEV, 1)?;
    let mut lines = BufReader::new(port.try_clone()?);
    let mut line = String::new();
    loop {
        if lines.read_line(&mut line)? == 0 {
            // Nobody on the other side at the moment.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        if !line.ends_with('\n') {
            continue;
        }
        let answer = match serde_json::from_str(&line)
            .context("reading the question")
            .and_then(answer)
        {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        line.clear();
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        port.write_all(&bytes)?;
    }
}

fn answer(question: Question) -> Result<Answer> {
    Ok(match question {
        Question::Processes => Answer::Processes(processes()?),
        Question::Kill { pid } => {
            let pid = Pid::from_raw(pid).context("not a process id")?;
            kill_process(pid, Signal::KILL)?;
            Answer::Done
        }
        Question::Read { path } => {
            let mut text = Vec::new();
            File::open(seen(&path))?
                .take(1 << 20)
                .read_to_end(&mut text)?;
            Answer::Text(String::from_utf8_lossy(&text).into_owned())
        }
        Question::KernelLog => Answer::Text(kernel_log()?),
        Question::Fill { path, leave_mib } => {
            fill(&seen(&path), leave_mib)?;
            Answer::Done
        }
        Question::Remove { path } => {
            fs::remove_file(seen(&path))?;
            Answer::Done
        }
        Question::Tcp { address, send } => Answer::Text(tcp(&address, &send)?),
        Question::Ping { address } => Answer::Milliseconds(ping(address.parse()?)?),
    })
}

/// Each read of the device is one record, `priority,number,microseconds,flags;text`; see the kernel's
/// `Documentation/ABI/testing/dev-kmsg`.
fn kernel_log() -> Result<String> {
    let mut device = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(format!("{DEV}/kmsg"))?;
    let (mut text, mut record) = (String::new(), [0; 8192]);
    loop {
        match device.read(&mut record) {
            Ok(length) => text.push_str(&String::from_utf8_lossy(&record[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(text),
            // Overwritten while we read: the next record follows.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The path to what PID 1 sees at `path`.
fn seen(path: &str) -> String {
    match path.strip_prefix("/proc/") {
        Some(rest) => format!("{PROC}/{rest}"),
        None => format!("{PROC}/1/root{path}"),
    }
}

fn processes() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(PROC)?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        // A process may end while we look at it.
        let (Ok(status), Ok(line)) = (
            fs::read_to_string(entry.path().join("status")),
            fs::read(entry.path().join("cmdline")),
        ) else {
            continue;
        };
        let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let number = |text: &str, key: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        found.push(Process {
            pid,
            parent: i32::try_from(number(&status, "PPid:"))?,
            uid: u32::try_from(number(&status, "Uid:"))?,
            arguments: String::from_utf8_lossy(&line)
                .split_terminator('\0')
                .map(str::to_owned)
                .collect(),
            rss_kib: number(&status, "VmRSS:"),
            pss_kib: number(&rollup, "Pss:"),
            pss_shared_kib: number(&rollup, "Pss_Shmem:"),
        });
    }
    Ok(found)
}

fn fill(path: &str, leave_mib: u64) -> Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    let about = rustix::fs::fstatvfs(&file)?;
    let free = about.f_bavail * about.f_frsize;
    let take = free.saturating_sub(leave_mib << 20);
    if take > 0 {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, take)?;
    }
    file.sync_all()?;
    Ok(())
}

fn tcp(address: &str, send: &str) -> Result<String> {
    let address: SocketAddr = address.parse().context("an address and a port")?;
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(20)).context("connecting")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(send.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut heard = Vec::new();
    stream
        .take(1 << 20)
        .read_to_end(&mut heard)
        .context("listening")?;
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

/// RFC 792: an echo request and its reply. The kernel puts the IP header before what a raw socket receives.
fn ping(address: Ipv4Addr) -> Result<f64> {
    const MARK: [u8; 4] = [0x6c, 0x71, 0x00, 0x01];
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(2)),
    )?;
    let mut packet = [8, 0, 0, 0, MARK[0], MARK[1], MARK[2], MARK[3]];
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(folded as u16);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    let started = Instant::now();
    rustix::net::sendto(
        &socket,
        &packet,
        SendFlags::empty(),
        &SocketAddrV4::new(address, 0),
    )?;
    while started.elapsed() < Duration::from_secs(2) {
        let mut reply = [0u8; 256];
        let Ok((_, length)) =
            rustix::net::recv(&socket, &mut reply[..], rustix::net::RecvFlags::empty())
        else {
            break;
        };
        let header = usize::from(reply[0] & 0x0f) * 4;
        let from = &reply[12..16];
        if length >= header + 8
            && reply[header] == 0
            && reply[header + 4..header + 8] == MARK
            && from == address.octets()
        {
            return Ok(started.elapsed().as_secs_f64() * 1000.0);
        }
    }
    bail!("no reply from {address}")
}
