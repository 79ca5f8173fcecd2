//! `lqx vm console`: a guest's serial line on this terminal, or in a script.

use std::io::{IsTerminal, Write};

use api::client::Client;
use regex::Regex;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

use crate::failure::Failure;
use crate::options::Console;
use crate::terminal;

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// A marker is looked for in so many of the last bytes.
const WINDOW: usize = 64 * 1024;

pub(super) async fn run(client: &Client, options: Console) -> Result<(), Failure> {
    let mut serial = client.vm_serial(&options.vm).await?;
    if let Some(line) = &options.send {
        serial.send(format!("{line}\n").as_bytes()).await?;
    }
    let (mut sender, mut receiver) = serial.split();
    if let Some(marker) = options.marker {
        let until = Instant::now() + options.timeout;
        let mut watch = Watch {
            marker,
            seen: Vec::new(),
        };
        loop {
            let received = timeout_at(until, receiver.receive()).await;
            let received = received.map_err(|_| {
                Failure::Timeout(format!(
                    "no `{}` within {} s",
                    watch.marker,
                    options.timeout.as_secs()
                ))
            })?;
            let Some(bytes) = received? else {
                return Err(Failure::Ended(format!(
                    "the console closed without `{}`",
                    watch.marker
                )));
            };
            print(&bytes)?;
            if watch.sees(&bytes) {
                return print(b"\n");
            }
        }
    }

    if std::io::stdin().is_terminal() {
        eprintln!("console of {}; Ctrl-] leaves", options.vm);
    }
    let raw = terminal::raw()?;
    let typing = async {
        let mut keyboard = tokio::io::stdin();
        let mut keys = [0; 1024];
        loop {
            let length = keyboard
                .read(&mut keys)
                .await
                .map_err(Failure::here("could not read the keyboard"))?;
            let keys = &keys[..length];
            let leave = raw.is_some() && keys.contains(&LEAVE);
            let before: Vec<u8> = keys
                .iter()
                .copied()
                .take_while(|key| raw.is_none() || *key != LEAVE)
                .collect();
            if !before.is_empty() {
                sender.send(&before).await?;
            }
            if leave {
                return Ok(());
            }
            if length == 0 {
                // A script's input has ended; what the guest prints is still wanted.
                return std::future::pending().await;
            }
        }
    };
    let printing = async {
        while let Some(bytes) = receiver.receive().await? {
            print(&bytes)?;
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = typing => ended,
        ended = printing => ended,
    };
    drop(raw);
    eprintln!();
    ended
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(Failure::here("could not write to standard output"))
}

/// Looks for a marker in a stream, over the borders of what comes at once.
struct Watch {
    marker: Regex,
    seen: Vec<u8>,
}

impl Watch {
    fn sees(&mut self, bytes: &[u8]) -> bool {
        self.seen.extend_from_slice(bytes);
        let found = self.marker.is_match(&String::from_utf8_lossy(&self.seen));
        let surplus = self.seen.len().saturating_sub(WINDOW);
        self.seen.drain(..surplus);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_seen_in_pieces() {
        let mut watch = Watch {
            marker: Regex::new(r"READY boots=\d+").unwrap(),
            seen: Vec::new(),
        };
        assert!(!watch.sees(b"REA"));
        assert!(!watch.sees(&vec![b'x'; 2 * WINDOW]));
        assert!(!watch.sees(b"READY boo"));
        assert!(watch.sees(b"ts=1"));
        assert!(watch.seen.len() <= WINDOW);
    }
}
