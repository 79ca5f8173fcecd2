//! Starting programs that must not outlive us.
//!
//! The kernel can kill a child when its parent *thread* ends, and threads of a test come and go. So one thread that lives
//! as long as this program starts them all.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

type Request = (Command, Sender<io::Result<Child>>);

static STARTER: LazyLock<Sender<Request>> = LazyLock::new(|| {
    let (sender, receiver) = channel::<Request>();
    thread::spawn(move || {
        for (mut command, reply) in receiver {
            // Nobody waits for the reply any more only when the asking thread died; the child then ends with us.
            let _ = reply.send(command.spawn());
        }
    });
    sender
});

/// A command that the kernel kills when this program ends, however it ends (`setpriv` is part of util-linux).
pub fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts `command` from the thread that lives as long as this program.
pub fn spawn(command: Command) -> Result<Child> {
    let what = format!("{:?}", command.get_program());
    let (reply, answer) = channel();
    STARTER
        .send((command, reply))
        .ok()
        .context("the starting thread ended")?;
    answer
        .recv()
        .context("the starting thread ended")?
        .with_context(|| format!("starting {what}"))
}

/// The connection `child` makes to `listener` while it starts. Its early end is an error, not a wait.
pub fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended before it was up: {status}");
        }
        if Instant::now() > until {
            bail!("QEMU did not connect to its sockets");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// CPU seconds a process has used, of all its threads.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / rustix::param::clock_ticks_per_second() as f64)
}
