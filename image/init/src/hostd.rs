//! Starting `hostd` and keeping what it says.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Pid;

use crate::console::{Log, log};
use crate::sys::own_session;

const PROGRAM: &str = "/bin/hostd";
const CGROUP: &str = "/sys/fs/cgroup/hostd";
const OUTPUT: &str = "/run/hostd.stderr";
/// The file starts anew past this size.
const OUTPUT_MAX_BYTES: u64 = 256 << 10;
const LINES_KEPT: usize = 15;
const LINE_MAX_BYTES: usize = 400;

/// The last lines of a stream of bytes, bounded in number and length.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end_line();
            } else if self.partial.len() < LINE_MAX_BYTES {
                self.partial.push(*byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial))
            .trim_end()
            .to_owned();
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// The daemon's output, and the way to start it.
pub(crate) struct Hostd {
    // One pipe for all lives of the daemon: its children keep the old one's end open when it dies.
    reader: PipeReader,
    writer: PipeWriter,
    tail: Tail,
    file: Option<File>,
    written: u64,
}

impl Hostd {
    pub(crate) fn new() -> Self {
        let (reader, writer) = io::pipe()
            .expect("the kernel makes pipes as long as there is memory, and nothing runs yet");
        if let Ok(flags) = fcntl_getfl(&reader) {
            let _ = fcntl_setfl(&reader, flags | OFlags::NONBLOCK);
        }
        Self {
            reader,
            writer,
            tail: Tail::default(),
            file: File::create(OUTPUT).ok(),
            written: 0,
        }
    }

    /// Starts it in a session and a cgroup of its own.
    pub(crate) fn start(&mut self) -> io::Result<Pid> {
        self.tail = Tail::default();
        let mut command = Command::new(PROGRAM);
        command
            .arg("daemon")
            .env_clear()
            .env("PATH", "/bin:/usr/bin:/sbin:/usr/sbin")
            .env("HOME", "/root")
            .env("TERM", "linux")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(self.writer.try_clone()?)
            .stderr(self.writer.try_clone()?);
        let child = own_session(&mut command).spawn()?;
        let pid = Pid::from_child(&child);
        own_cgroup(pid);
        log(
            Log::Info,
            &format!("hostd is started, process {pid}", pid = pid.as_raw_pid()),
        );
        Ok(pid)
    }

    /// Its output, to wait for.
    pub(crate) fn output(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Takes in what it wrote: never more than a buffer per call, so that a chatterbox does not keep PID 1 from its work.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0; 16 << 10];
        let Ok(length) = self.reader.read(&mut buffer) else {
            return;
        };
        self.tail.push(&buffer[..length]);
        self.written += length as u64;
        if self.written > OUTPUT_MAX_BYTES {
            self.file = File::create(OUTPUT).ok();
            self.written = length as u64;
        }
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&buffer[..length]);
        }
    }

    /// The last it said in this life.
    pub(crate) fn last_lines(&self) -> impl Iterator<Item = &str> {
        self.tail.lines.iter().map(String::as_str)
    }
}

fn own_cgroup(pid: Pid) {
    let group = Path::new(CGROUP);
    let _ = fs::create_dir(group);
    // Guests must not starve the daemon that keeps their leases.
    let _ = fs::write(group.join("cpu.weight"), "1000");
    if let Err(error) = fs::write(group.join("cgroup.procs"), pid.as_raw_pid().to_string()) {
        log(
            Log::Error,
            &format!("hostd has no cgroup of its own: {error}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_whole() {
        let mut tail = Tail::default();
        for n in 0..40 {
            tail.push(format!("line {n}").as_bytes());
            tail.push(b"\n\n");
        }
        assert_eq!(tail.lines.len(), LINES_KEPT);
        assert_eq!(tail.lines.back().unwrap(), "line 39");
    }

    #[test]
    fn a_line_without_end_takes_no_more_than_its_bound() {
        let mut tail = Tail::default();
        tail.push(&vec![b'x'; 1 << 20]);
        assert_eq!(tail.partial.len(), LINE_MAX_BYTES);
        tail.push(b"\n");
        assert_eq!(tail.lines.back().unwrap().len(), LINE_MAX_BYTES);
    }
}
