//! A machine's serial line: everything it said, the screen a terminal would show, and waiting for either.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use regex::Regex;

/// The console's size: what a VGA text screen and a plain terminal both have.
pub const ROWS: u16 = 25;
/// Columns of the console.
pub const COLUMNS: u16 = 80;

/// The last lines shown when a wait fails.
const TAIL_LINES: usize = 60;

/// One serial line.
#[derive(Clone)]
pub struct Serial {
    shared: Arc<(Mutex<Heard>, Condvar)>,
    input: Arc<Mutex<UnixStream>>,
}

struct Heard {
    /// All output without escape sequences and carriage returns.
    plain: String,
    strip: Strip,
    screen: vt100::Parser,
    ended: bool,
}

impl Serial {
    /// Listens to `stream` from now on; every byte also goes to `log`.
    pub fn new(mut stream: UnixStream, log: &Path) -> Result<Self> {
        let mut log = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let input = stream.try_clone()?;
        let heard = Heard {
            plain: String::new(),
            strip: Strip::default(),
            screen: vt100::Parser::new(ROWS, COLUMNS, 0),
            ended: false,
        };
        let shared = Arc::new((Mutex::new(heard), Condvar::new()));
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            loop {
                let length = stream.read(&mut buffer).unwrap_or(0);
                let (heard, changed) = &*writer;
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if length == 0 {
                    heard.ended = true;
                    changed.notify_all();
                    return;
                }
                let bytes = &buffer[..length];
                // A log that cannot be written must not stop the machine; the memory copy has it all.
                let _ = log.write_all(bytes);
                heard.screen.process(bytes);
                let mut plain = std::mem::take(&mut heard.plain);
                heard.strip.push(bytes, &mut plain);
                heard.plain = plain;
                changed.notify_all();
            }
        });
        Ok(Self {
            shared,
            input: Arc::new(Mutex::new(input)),
        })
    }

    /// Types.
    pub fn send(&self, text: &str) -> Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input
            .write_all(text.as_bytes())
            .context("typing on the serial line")
    }

    /// Everything said so far, without escape sequences.
    pub fn text(&self) -> String {
        self.heard().plain.clone()
    }

    /// What a terminal shows now.
    pub fn screen(&self) -> String {
        self.heard().screen.screen().contents()
    }

    /// Waits until the output has a match, and returns its first group or, without groups, the whole match.
    pub fn wait_for(&self, pattern: &str, within: Duration) -> Result<String> {
        self.wait(pattern, within, "said", |heard| Cow::Borrowed(&heard.plain))
    }

    /// Waits until the screen has a match. For programs that draw: their output in order of writing makes no text.
    pub fn wait_for_screen(&self, pattern: &str, within: Duration) -> Result<String> {
        self.wait(pattern, within, "showed", |heard| {
            Cow::Owned(heard.screen.screen().contents())
        })
    }

    fn wait(
        &self,
        pattern: &str,
        within: Duration,
        did: &str,
        text: impl Fn(&Heard) -> Cow<'_, str>,
    ) -> Result<String> {
        let regex = Regex::new(pattern).with_context(|| format!("reading `{pattern}`"))?;
        let until = Instant::now() + within;
        let mut heard = self.heard();
        loop {
            if let Some(found) = regex.captures(&text(&heard)) {
                let group = found.get(1).or_else(|| found.get(0));
                return Ok(group.map_or_else(String::new, |group| group.as_str().to_owned()));
            }
            let left = until.saturating_duration_since(Instant::now());
            if heard.ended || left.is_zero() {
                let ended = if heard.ended {
                    "the machine ended before it"
                } else {
                    "in time, the machine never"
                };
                let tail = tail(&heard.plain);
                let screen = heard.screen.screen().contents();
                bail!(
                    "{ended} {did} `{pattern}`\n--- it ended with\n{tail}\n--- its screen\n{screen}"
                );
            }
            let (next, _) = self
                .shared
                .1
                .wait_timeout(heard, left)
                .unwrap_or_else(PoisonError::into_inner);
            heard = next;
        }
    }

    /// The last lines said.
    pub fn tail(&self) -> String {
        tail(&self.heard().plain)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Takes escape sequences out of a stream of bytes, across the borders of reads.
#[derive(Debug, Default)]
pub(crate) struct Strip {
    state: StripState,
    /// Bytes of a character whose rest has not come yet.
    partial: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum StripState {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, ECMA-48 §5.4: ends at 0x40 to 0x7e.
    Control,
    /// In a string (title, and the like): ends at BEL or at the ESC of ST.
    Text8,
    /// After `ESC (` and its like: one more byte.
    One,
}

impl Strip {
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (StripState::Text, 0x1b) | (StripState::Text8, 0x1b) => StripState::Escape,
                (StripState::Text, b'\r' | 0 | 7) => StripState::Text,
                (StripState::Text, _) => {
                    self.partial.push(byte);
                    StripState::Text
                }
                (StripState::Escape, b'[') => StripState::Control,
                (StripState::Escape, b']' | b'P' | b'_' | b'^') => StripState::Text8,
                (StripState::Escape, b'(' | b')' | b'#' | b'%') => StripState::One,
                (StripState::Control, 0x40..=0x7e) | (StripState::Text8, 7) => StripState::Text,
                (StripState::Control | StripState::Text8, _) => self.state,
                (StripState::Escape | StripState::One, _) => StripState::Text,
            };
        }
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                out.push_str(text);
                self.partial.clear();
            }
            Err(error) if error.error_len().is_none() => {
                let whole = error.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&self.partial[..whole]));
                self.partial.drain(..whole);
            }
            Err(_) => {
                out.push_str(&String::from_utf8_lossy(&self.partial));
                self.partial.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_vanish_even_when_cut_in_two() {
        let mut strip = Strip::default();
        let mut out = String::new();
        for piece in [
            &b"a\x1b[1;3"[..],
            b"1mb\x1b]0;title\x07c\x1b(B\xc3",
            b"\xa4\r\n",
        ] {
            strip.push(piece, &mut out);
        }
        assert_eq!(out, "abcä\n");
    }

    #[test]
    fn a_wait_finds_what_was_said_and_says_what_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, us) = UnixStream::pair().unwrap();
        let serial = Serial::new(us, &folder.path().join("log")).unwrap();
        machine
            .write_all(b"boots=\x1b[1m3\x1b[0m\n\x1b[2;5Hdrawn")
            .unwrap();
        assert_eq!(
            serial
                .wait_for(r"boots=(\d+)", Duration::from_secs(5))
                .unwrap(),
            "3"
        );
        assert_eq!(
            serial
                .wait_for_screen("    drawn", Duration::from_secs(5))
                .unwrap(),
            "    drawn"
        );
        drop(machine);
        let error = serial
            .wait_for("never", Duration::from_secs(5))
            .unwrap_err();
        assert!(
            error.to_string().contains("ended before it said `never`"),
            "{error}"
        );
    }
}
