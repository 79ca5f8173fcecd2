//! Reading the appliance's own screen, as a person in front of it would.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::machine::Machine;

/// What the status screen of a fresh appliance says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// The one-time token for enrolling the first administrator.
    pub setup_token: String,
}

impl Facts {
    /// From a screen; `None` while it does not show all of it.
    fn read(screen: &str) -> Result<Option<Self>> {
        let plain: String = screen
            .chars()
            .map(|c| if c.is_ascii() { c } else { ' ' })
            .collect();
        let fingerprint = Regex::new(r"Fingerprint\s+([0-9a-f]{32})\s+([0-9a-f]{32})\s")?;
        let token = Regex::new(r"Setup token\s+(\S+)")?;
        let (Some(halves), Some(token)) = (fingerprint.captures(&plain), token.captures(&plain))
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            fingerprint: format!("{}{}", &halves[1], &halves[2]),
            setup_token: token[1].to_owned(),
        }))
    }

    /// Waits until the machine's screen shows them.
    pub fn wait(
        machine: &mut Machine,
        within: Duration,
        mut meanwhile: impl FnMut(&str),
    ) -> Result<Self> {
        let until = Instant::now() + within;
        loop {
            let screen = machine.serial().screen();
            if let Some(facts) = Self::read(&screen).context("reading the screen")? {
                return Ok(facts);
            }
            meanwhile(&screen);
            if !machine.is_on() || Instant::now() > until {
                bail!(
                    "machine `{}` shows no setup token\n--- its screen\n{screen}\n--- it said\n{}",
                    machine.name(),
                    machine.serial().tail()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_are_read_off_a_framed_screen() {
        let screen = format!(
            "┌ Status ─────┐\n│Address      https://10.0.2.15   │\n│Fingerprint  {}   │\n│             {}   │\n│Setup token  7QXK-22FM   │\n└──┘",
            "ab".repeat(16),
            "cd".repeat(16)
        );
        let facts = Facts::read(&screen).unwrap().unwrap();
        assert_eq!(facts.fingerprint, "ab".repeat(16) + &"cd".repeat(16));
        assert_eq!(facts.setup_token, "7QXK-22FM");
        assert_eq!(Facts::read(&screen.replace("Setup", "")).unwrap(), None);
    }
}
