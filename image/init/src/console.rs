//! What people see of PID 1: kernel log lines, and in trouble a message on every console.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};

/// Severity in the kernel's log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Log {
    Error = 3,
    Info = 6,
}

/// One line to the kernel's log, which `hostd` shows and a serial console without `quiet` prints.
pub(crate) fn log(severity: Log, text: &str) {
    let line = format!("<{}>init: {}\n", severity as u8, text.replace('\n', " "));
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(line.as_bytes());
    }
}

/// Opens the console as the standard descriptors: at start there may be none, and a later file must not take their place.
pub(crate) fn set_up() {
    let Ok(console) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")
    else {
        return;
    };
    let fd = console.as_fd();
    let _ = (
        rustix::stdio::dup2_stdin(fd),
        rustix::stdio::dup2_stdout(fd),
        rustix::stdio::dup2_stderr(fd),
    );
}

/// Every terminal a person may be looking at.
fn consoles() -> Vec<String> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut names: Vec<String> = active.split_whitespace().map(str::to_owned).collect();
    for always in ["tty0", "ttyS0"] {
        if !names.iter().any(|name| name == always) {
            names.push(always.to_owned());
        }
    }
    names
}

fn tell(text: &str) {
    for name in consoles() {
        let Ok(mut terminal) = OpenOptions::new()
            .write(true)
            .custom_flags_nonblocking()
            .open(format!("/dev/{name}"))
        else {
            continue;
        };
        // A screen program that died may have left the terminal raw.
        if let Ok(mut modes) = tcgetattr(&terminal) {
            modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
            let _ = tcsetattr(&terminal, OptionalActions::Now, &modes);
        }
        let _ = terminal.write_all(text.as_bytes());
    }
}

trait NonBlocking {
    fn custom_flags_nonblocking(&mut self) -> &mut Self;
}

impl NonBlocking for OpenOptions {
    /// A serial line nobody reads, with flow control on, must not stop PID 1.
    fn custom_flags_nonblocking(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NONBLOCK | libc::O_NOCTTY)
    }
}

/// Shows what is wrong with `hostd`, the last it wrote, and what comes next: whole sentences.
pub(crate) fn rescue<'a>(what: &str, last_lines: impl Iterator<Item = &'a str>, next: &str) {
    // Leave the alternate screen, default colours, clear, home: what was there is the picture of a dead program.
    tell(&format!(
        "\x1b[?1049l\x1b[?25h\x1b[0m\x1b[2J\x1b[H{}",
        rescue_text(what, last_lines, next)
    ));
}

fn rescue_text<'a>(what: &str, last_lines: impl Iterator<Item = &'a str>, next: &str) -> String {
    let mut text = format!("limiquantix: the host daemon is not well\n\n  {what}\n\n");
    let mut lines = last_lines.map(printable).peekable();
    if lines.peek().is_some() {
        text += "  The last it wrote:\n";
        for line in lines {
            text += &format!("    {line}\n");
        }
    } else {
        text += "  It wrote nothing.\n";
    }
    text += &format!("\n  {next}\n\n");
    text
}

/// What a program wrote may be anything; escape sequences must not reach the terminal.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(160).collect()
}

/// Says what is going on at the end of the machine's life.
pub(crate) fn announce(text: &str) {
    log(Log::Info, text);
    tell(&format!("\nlimiquantix: {text}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rescue_text_says_why_in_words_and_carries_no_escape_sequences() {
        let lines = ["Error: no state", "\x1b[2Jevil"].into_iter();
        let text = rescue_text("It died.", lines, "It is tried again in 2 seconds.");
        let expected = "limiquantix: the host daemon is not well\n\n  It died.\n\n  The last it wrote:\n    \
                        Error: no state\n    [2Jevil\n\n  It is tried again in 2 seconds.\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_silent_death_is_told_as_such() {
        assert!(rescue_text("x", [].into_iter(), "y").contains("It wrote nothing."));
    }
}
