//! PID 1: mounts, modules, `hostd`, orphans, power. It holds no policy and depends on nothing of ours.
//!
//! What it promises to `hostd`:
//! - `/` is read-only and is not the kernel's own rootfs mount (so `pivot_root` works below it); `/run`, `/tmp`, `/dev/shm` are writable memory.
//! - The drivers of all devices found so far are loaded when `hostd` starts; later devices get theirs as they appear. `/sbin/modprobe` is
//!   this program too: the kernel and `hostd` ask for modules by name or alias through it.
//! - `hostd` runs in a session and cgroup (`/sys/fs/cgroup/hostd`) of its own; what it writes to stdout and stderr is kept in
//!   `/run/hostd.stderr`, bounded, and its last lines are shown if it dies for good. Its children outlive it.
//! - Signals to PID 1: SIGTERM or SIGUSR2 power off, SIGINT (also Ctrl-Alt-Del) restarts. The power button powers off. When they come from anybody but
//!   `hostd`, it is asked first: SIGUSR1 to power off, SIGUSR2 to restart. It sees its guests out and then sends PID 1 SIGTERM or SIGINT. A
//!   second request, 90 seconds, or the death of `hostd` end that wait. Then `hostd` gets SIGTERM, then everyone else.
//! - When `hostd` has blessed the slot it was started from, it creates `/run/limiquantix/blessed`. Until then a `hostd` that keeps dying, or
//!   is not healthy after ten minutes, makes the machine restart, so that the boot loader's counter leads back to the version before.

mod button;
mod console;
mod farewell;
mod hostd;
mod modules;
mod mount;
mod power;
mod supervise;
mod sys;
mod trial;
mod uevent;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use button::PowerButtons;
use console::{Log, log};
use farewell::{Farewell, Step};
use hostd::Hostd;
use modules::Loader;
use power::Ending;
use supervise::{Supervisor, Verdict};
use sys::{Signals, wait_readable};
use uevent::Uevents;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name.rsplit('/').next() == Some("modprobe") {
        return modules::modprobe(std::env::args().skip(1));
    }
    if std::process::id() != 1 {
        eprintln!("init: this program is PID 1 of the limiquantix appliance and does nothing else");
        return ExitCode::FAILURE;
    }
    prepare();
    let mut hostd = Hostd::new();
    let mut supervisor = Supervisor::default();
    let ending = run(&mut hostd, &mut supervisor);
    power::end(ending, supervisor.pid(), &mut hostd)
}

/// What must be there before anything else runs.
fn prepare() {
    for failure in mount::all() {
        log(Log::Error, &failure);
    }
    console::set_up();
}

/// The life of the machine, until somebody asks for its end.
fn run(hostd: &mut Hostd, supervisor: &mut Supervisor) -> Ending {
    let signals = Signals::block();
    sys::ctrl_alt_del_signals_us();

    // Listening begins before looking, so that no device is missed in between.
    let uevents = Uevents::open();
    let mut loader = Loader::open();
    loader.start();
    settle(&mut loader, &uevents);
    let mut buttons = PowerButtons::find();

    let mut farewell = Farewell::default();
    let begin = Instant::now();
    loop {
        if let Step::End(ending) = farewell.looked_at(begin.elapsed()) {
            log(Log::Error, "the guests were not seen out in time");
            return ending;
        }
        if supervisor.is_due(begin.elapsed()) {
            match hostd.start() {
                Ok(pid) => supervisor.started(pid, begin.elapsed()),
                Err(error) => {
                    let reason = format!("it could not be started: {error}");
                    if let Some(ending) = judge(supervisor.died(begin.elapsed()), &reason, hostd) {
                        return ending;
                    }
                }
            }
        }

        if begin.elapsed() >= trial::LENGTH && trial::on_trial() {
            let what = "It runs, but has not found itself healthy in ten minutes.";
            console::rescue(what, hostd.last_lines(), LEFT);
            std::thread::sleep(Duration::from_secs(10));
            return Ending::Restart;
        }

        let mut sources = vec![signals.fd(), hostd.output()];
        sources.extend(uevents.fd());
        sources.extend(buttons.fds());
        let now = begin.elapsed();
        let due = [supervisor.wait(now), farewell.wait(now)];
        let due = due.into_iter().flatten().min();
        wait_readable(&sources, due.unwrap_or(Duration::from_secs(60)));

        hostd.drain();
        if loader.heed(uevents.drain()) {
            buttons = PowerButtons::find();
        }
        let mut wanted = None;
        if buttons.pressed() {
            log(Log::Info, "the power button was pressed");
            wanted = Some(Ending::PowerOff);
        }
        while let Some((signal, sender)) = signals.next() {
            let Some(ending) = Ending::of_signal(signal) else {
                continue;
            };
            if sender.is_some() && sender == supervisor.pid() {
                return ending;
            }
            wanted = Some(ending);
        }
        if let Some(wanted) = wanted {
            let lives = supervisor.pid().is_some();
            match farewell.wanted(wanted, lives, begin.elapsed()) {
                Step::Wait => {}
                Step::AskHostd(ending) => power::ask(ending, supervisor.pid()),
                Step::End(ending) => return ending,
            }
        }
        for (pid, end) in sys::reap() {
            if supervisor.pid() == Some(pid) {
                hostd.drain();
                if let Step::End(ending) = farewell.hostd_died() {
                    supervisor.died(begin.elapsed());
                    return ending;
                }
                if let Some(ending) = judge(supervisor.died(begin.elapsed()), &end, hostd) {
                    return ending;
                }
            }
        }
    }
}

/// Waits until drivers have brought no new devices for a moment, but not for long: slow ones are served later.
fn settle(loader: &mut Loader, uevents: &Uevents) {
    const QUIET: Duration = Duration::from_millis(100);
    const AT_MOST: Duration = Duration::from_secs(3);
    let begin = Instant::now();
    while begin.elapsed() < AT_MOST {
        let Some(fd) = uevents.fd() else { return };
        if !wait_readable(&[fd], QUIET) {
            break;
        }
        loader.heed(uevents.drain());
    }
    loader.report();
}

/// What is told when a version is given up.
const LEFT: &str = "This version has never been healthy: the machine restarts in 10 seconds, and the boot loader goes back to the \
                    one before after its tries are used up.";

/// Tells about a death of `hostd`, and says whether the machine shall end because of it.
fn judge(verdict: Verdict, reason: &str, hostd: &Hostd) -> Option<Ending> {
    match verdict {
        Verdict::Restart { after } => {
            log(
                Log::Error,
                &format!(
                    "hostd died: {reason}; it is started again in {} ms",
                    after.as_millis()
                ),
            );
            None
        }
        Verdict::Troubled { deaths, after } => {
            log(
                Log::Error,
                &format!("hostd died for the {deaths}th time: {reason}"),
            );
            let give_up = deaths >= supervise::DEATHS_UNTIL_SLOT_IS_LEFT && trial::on_trial();
            let next = if give_up {
                LEFT.to_owned()
            } else {
                format!(
                    "It is tried again in {:.1} seconds. Guests that are running go on. Ctrl-Alt-Del restarts the machine.",
                    after.as_secs_f32()
                )
            };
            let what =
                format!("It was started {deaths} times and ended each time: last time {reason}.");
            console::rescue(&what, hostd.last_lines(), &next);
            if give_up {
                std::thread::sleep(Duration::from_secs(10));
                return Some(Ending::Restart);
            }
            None
        }
    }
}
