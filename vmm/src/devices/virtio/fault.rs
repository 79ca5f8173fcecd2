//! A guest's mistakes: each is counted, few are told.

use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::metrics::Counter;

/// A guest can make a million mistakes a second; one line in this time says so.
const QUIET: Duration = Duration::from_secs(10);

/// Counts mistakes of one device's driver and tells of them on standard error, at most once in ten seconds.
#[derive(Debug)]
pub struct FaultLog {
    device: String,
    total: Counter,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    total: u64,
}

impl FaultLog {
    /// For the device that messages call `device`.
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            device: device.into(),
            total: Counter::default(),
            told: Mutex::default(),
        }
    }

    /// The driver did `what`.
    pub fn report(&self, what: &dyn fmt::Display) {
        if let Some(line) = self.count(what, Instant::now()) {
            // Nobody to tell if this fails.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// How many mistakes so far.
    pub fn total(&self) -> &Counter {
        &self.total
    }

    fn count(&self, what: &dyn fmt::Display, now: Instant) -> Option<String> {
        self.total.count();
        let total = self.total.get();
        // Whoever does not get the lock is being told about by the one who has it.
        let mut told = self.told.try_lock().ok()?;
        if told
            .last
            .is_some_and(|last| now.duration_since(last) < QUIET)
        {
            return None;
        }
        let untold = total.saturating_sub(told.total).saturating_sub(1);
        *told = Told {
            last: Some(now),
            total,
        };
        let device = &self.device;
        Some(match untold {
            0 => format!("{device}: guest error: {what}"),
            _ => {
                format!("{device}: guest error: {what} (and {untold} more since the last message)")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_counted_and_few_are_told() {
        let log = FaultLog::new("disk root");
        let start = Instant::now();
        assert_eq!(
            log.count(&"a loop", start).unwrap(),
            "disk root: guest error: a loop"
        );
        for _ in 0..99 {
            assert_eq!(log.count(&"a loop", start), None);
        }
        let line = log.count(&"an end", start + QUIET).unwrap();
        assert_eq!(
            line,
            "disk root: guest error: an end (and 99 more since the last message)"
        );
        assert_eq!(log.total().get(), 101);
    }
}
