//! When `hostd` is started again: a pure state machine, fed with times.
//!
//! ```text
//!            started                 died, lived long
//!  Due ────────────────► Running ─────────────────────► Due after 100 ms
//!   ▲                       │ died, lived short
//!   └── time comes ── Down ◄┘  200 ms, 400 ms … 30 s
//! ```

use std::time::Duration;

use rustix::process::Pid;

/// A life of at least this long forgets the deaths before it.
const LONG_LIFE: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// From this death in a row on, people are told on the consoles.
const DEATHS_UNTIL_TOLD: u32 = 5;
/// From this death in a row on, a version that was never healthy is given up: nearly two minutes after the first.
pub(crate) const DEATHS_UNTIL_SLOT_IS_LEFT: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running { pid: Pid, since: Duration },
    Down { until: Duration },
}

/// What follows from a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Just start it again.
    Restart { after: Duration },
    /// Start it again, and tell: this is not the first time.
    Troubled { deaths: u32, after: Duration },
}

/// Times are since any fixed moment.
#[derive(Debug)]
pub(crate) struct Supervisor {
    state: State,
    deaths: u32,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            state: State::Down {
                until: Duration::ZERO,
            },
            deaths: 0,
        }
    }
}

impl Supervisor {
    /// Whether it shall be started now.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        matches!(self.state, State::Down { until } if until <= now)
    }

    /// How long nothing is due; `None` while it runs.
    pub(crate) fn wait(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Running { .. } => None,
            State::Down { until } => Some(until.saturating_sub(now)),
        }
    }

    /// The process that is `hostd` now.
    pub(crate) fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Down { .. } => None,
        }
    }

    /// It was started.
    pub(crate) fn started(&mut self, pid: Pid, now: Duration) {
        self.state = State::Running { pid, since: now };
    }

    /// It died, or could not be started.
    pub(crate) fn died(&mut self, now: Duration) -> Verdict {
        if let State::Running { since, .. } = self.state
            && now.saturating_sub(since) >= LONG_LIFE
        {
            self.deaths = 0;
        }
        let after = FIRST_DELAY
            .saturating_mul(1 << self.deaths.min(16))
            .min(LONGEST_DELAY);
        self.deaths += 1;
        self.state = State::Down { until: now + after };
        if self.deaths < DEATHS_UNTIL_TOLD {
            Verdict::Restart { after }
        } else {
            Verdict::Troubled {
                deaths: self.deaths,
                after,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn dies_at_once(supervisor: &mut Supervisor, now: &mut Duration) -> Verdict {
        *now += supervisor.wait(*now).unwrap();
        assert!(supervisor.is_due(*now));
        supervisor.started(Pid::from_raw(7).unwrap(), *now);
        assert!(
            !supervisor.is_due(*now + LONGEST_DELAY),
            "it runs: nothing is due"
        );
        supervisor.died(*now)
    }

    #[test]
    fn it_is_started_at_once_and_again_with_growing_delays_up_to_a_limit() {
        let (mut supervisor, mut now) = (Supervisor::default(), Duration::ZERO);
        assert!(supervisor.is_due(now));
        let delays: Vec<u128> = (0..12)
            .map(|_| match dies_at_once(&mut supervisor, &mut now) {
                Verdict::Restart { after } | Verdict::Troubled { after, .. } => after.as_millis(),
            })
            .collect();
        assert_eq!(
            delays,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000
            ]
        );
    }

    #[test]
    fn people_are_told_from_the_fifth_death_in_a_row_on() {
        let (mut supervisor, mut now) = (Supervisor::default(), Duration::ZERO);
        for _ in 0..4 {
            assert!(matches!(
                dies_at_once(&mut supervisor, &mut now),
                Verdict::Restart { .. }
            ));
        }
        assert_eq!(
            dies_at_once(&mut supervisor, &mut now),
            Verdict::Troubled {
                deaths: 5,
                after: MS(1600)
            }
        );
    }

    #[test]
    fn a_long_life_is_a_fresh_start() {
        let (mut supervisor, mut now) = (Supervisor::default(), Duration::ZERO);
        for _ in 0..6 {
            dies_at_once(&mut supervisor, &mut now);
        }
        now += supervisor.wait(now).unwrap();
        supervisor.started(Pid::from_raw(8).unwrap(), now);
        assert_eq!(
            supervisor.died(now + LONG_LIFE),
            Verdict::Restart { after: MS(100) }
        );
    }

    #[test]
    fn a_process_that_is_not_it_is_never_taken_for_it() {
        let mut supervisor = Supervisor::default();
        assert_eq!(supervisor.pid(), None);
        supervisor.started(Pid::from_raw(7).unwrap(), MS(0));
        assert_eq!(supervisor.pid(), Pid::from_raw(7));
        supervisor.died(MS(1));
        assert_eq!(supervisor.pid(), None);
    }
}
