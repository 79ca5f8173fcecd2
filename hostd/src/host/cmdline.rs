//! What the boot loader said: `lqx.*` on the kernel's command line.

use std::time::Duration;

use uuid::Uuid;

use super::Roots;

/// The words that are ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// `lqx.install=UUID`: our install, where there are no EFI variables (direct kernel boots).
    pub install: Option<Uuid>,
    /// `lqx.seed=URL`: answers for an unattended install.
    pub seed: Option<String>,
    /// `lqx.seed_sha256=HEX`: what the seed must hash to.
    pub seed_sha256: Option<String>,
    /// `lqx.uki=URL`: where the installer gets the UKI when it was not booted from a medium it can read.
    pub uki: Option<String>,
    /// `lqx.uki_sha256=HEX`: what the UKI must hash to.
    pub uki_sha256: Option<String>,
    /// `lqx.heartbeat_ms=`: between Raft heartbeats.
    pub heartbeat: Option<Duration>,
    /// `lqx.election_ms=`: shortest election timeout.
    pub election: Option<Duration>,
    /// Words beginning with `lqx.` that nobody knows or whose value is no good: shown, never fatal.
    pub unknown: Vec<String>,
}

impl Cmdline {
    /// Of the running kernel.
    pub fn of_kernel(roots: &Roots) -> Self {
        Self::parse(&super::text(roots.proc.join("cmdline")))
    }

    /// From its text; the last of a repeated word counts.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for word in text.split_whitespace().filter(|w| w.starts_with("lqx.")) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let known = match key {
                "lqx.install" => Uuid::parse_str(value)
                    .map(|id| found.install = Some(id))
                    .is_ok(),
                "lqx.seed" => keep(&mut found.seed, value),
                "lqx.seed_sha256" => keep(&mut found.seed_sha256, value),
                "lqx.uki" => keep(&mut found.uki, value),
                "lqx.uki_sha256" => keep(&mut found.uki_sha256, value),
                "lqx.heartbeat_ms" => millis(&mut found.heartbeat, value),
                "lqx.election_ms" => millis(&mut found.election, value),
                _ => false,
            };
            if !known {
                found.unknown.push(word.to_owned());
            }
        }
        found
    }
}

fn keep(place: &mut Option<String>, value: &str) -> bool {
    *place = (!value.is_empty()).then(|| value.to_owned());
    place.is_some()
}

fn millis(place: &mut Option<Duration>, value: &str) -> bool {
    match value.parse::<u64>() {
        Ok(ms) if ms > 0 => {
            *place = Some(Duration::from_millis(ms));
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_and_wrong_ones_are_kept_for_the_log() {
        let found = Cmdline::parse(
            "console=ttyS0 lqx.install=0190a0b2-0000-7000-8000-000000000001 lqx.seed=http://h/s.toml lqx.heartbeat_ms=500 lqx.election_ms=no lqx.what=1 quiet",
        );
        assert_eq!(
            found.install.unwrap().to_string(),
            "0190a0b2-0000-7000-8000-000000000001"
        );
        assert_eq!(found.seed.as_deref(), Some("http://h/s.toml"));
        assert_eq!(found.heartbeat, Some(Duration::from_millis(500)));
        assert_eq!(found.election, None);
        assert_eq!(found.unknown, ["lqx.election_ms=no", "lqx.what=1"]);
    }
}
