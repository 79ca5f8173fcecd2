//! Somebody wants the machine to end, and guests get the time to power themselves off: `hostd` sees to that, and then asks
//! PID 1 itself. A pure state machine, fed with times.
//!
//! ```text
//!  button, Ctrl-Alt-Del, a signal ──► hostd is asked ──► it asks back: the end
//!                  no hostd: the end        │ again, or too long, or it died: the end
//! ```

use std::time::Duration;

use crate::power::Ending;

/// More than `hostd` gives its guests.
const PATIENCE: Duration = Duration::from_secs(90);
/// Some machines report one press of the button twice.
const ONE_PRESS: Duration = Duration::from_secs(2);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing more than waiting.
    Wait,
    /// Ask `hostd` to bring the machine to this end.
    AskHostd(Ending),
    /// End the machine.
    End(Ending),
}

/// Times are since any fixed moment.
#[derive(Debug, Default)]
pub(crate) struct Farewell {
    asked: Option<(Ending, Duration)>,
}

impl Farewell {
    /// Somebody who is not `hostd` wants this end.
    pub(crate) fn wanted(&mut self, ending: Ending, hostd_lives: bool, now: Duration) -> Step {
        match self.asked {
            _ if !hostd_lives => Step::End(ending),
            None => {
                self.asked = Some((ending, now));
                Step::AskHostd(ending)
            }
            Some((_, since)) if now.saturating_sub(since) < ONE_PRESS => Step::Wait,
            Some(_) => Step::End(ending),
        }
    }

    /// Whether it has taken too long.
    pub(crate) fn looked_at(&self, now: Duration) -> Step {
        match self.asked {
            Some((ending, since)) if now.saturating_sub(since) >= PATIENCE => Step::End(ending),
            _ => Step::Wait,
        }
    }

    /// `hostd` is gone: nobody sees guests out any more.
    pub(crate) fn hostd_died(&self) -> Step {
        self.asked
            .map_or(Step::Wait, |(ending, _)| Step::End(ending))
    }

    /// How long nothing is due.
    pub(crate) fn wait(&self, now: Duration) -> Option<Duration> {
        let (_, since) = self.asked?;
        Some((since + PATIENCE).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ending::{PowerOff, Restart};

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn hostd_is_asked_once_and_has_its_time() {
        let mut farewell = Farewell::default();
        assert_eq!(farewell.looked_at(S(5)), Step::Wait);
        assert_eq!(farewell.wait(S(5)), None);
        assert_eq!(
            farewell.wanted(PowerOff, true, S(10)),
            Step::AskHostd(PowerOff)
        );
        assert_eq!(farewell.wanted(PowerOff, true, S(11)), Step::Wait);
        assert_eq!(farewell.looked_at(S(99)), Step::Wait);
        assert_eq!(farewell.wait(S(99)), Some(S(1)));
        assert_eq!(farewell.looked_at(S(100)), Step::End(PowerOff));
    }

    #[test]
    fn a_second_wish_is_an_order_and_the_newest_counts() {
        let mut farewell = Farewell::default();
        farewell.wanted(PowerOff, true, S(10));
        assert_eq!(farewell.wanted(Restart, true, S(13)), Step::End(Restart));
    }

    #[test]
    fn without_hostd_nobody_is_waited_for() {
        let mut farewell = Farewell::default();
        assert_eq!(farewell.hostd_died(), Step::Wait);
        assert_eq!(farewell.wanted(Restart, false, S(1)), Step::End(Restart));
        farewell.wanted(PowerOff, true, S(1));
        assert_eq!(farewell.hostd_died(), Step::End(PowerOff));
    }
}
