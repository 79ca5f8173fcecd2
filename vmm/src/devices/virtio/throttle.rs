//! Where a queue waits when its device has used up its rate limit.
//!
//! ```text
//!   admits(bytes) ── yes ──► the request is carried out
//!        │ no
//!        ▼
//!   timer set; the request stays in the ring, as if it had not been looked at ── timer rings ──► woken(), look again
//! ```
//! The worker goes on meanwhile: completions, other queues' business and the end of the activation are not held up.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::wait::{Trigger, Waiter};
use crate::config::RateLimits;
use crate::metrics::Counter;
use crate::rate_limit::{Clock, Limiter};

/// One worker's side of a rate limit, or of none.
#[derive(Debug)]
pub struct Throttle {
    limit: Option<Limit>,
    /// Requests that had to wait.
    throttled: Counter,
}

#[derive(Debug)]
struct Limit {
    /// Shared by the workers of one device; each has its own timer.
    limiter: Arc<Mutex<Limiter>>,
    clock: Clock,
    timer: Timer,
    /// When the timer will ring.
    until: Option<u64>,
}

#[derive(Debug)]
struct Timer(OwnedFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    fn set(&self, nanoseconds: u64) -> io::Result<()> {
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: never,
            it_value: Timespec {
                tv_sec: (nanoseconds / 1_000_000_000) as i64,
                tv_nsec: (nanoseconds % 1_000_000_000) as i64,
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

impl Throttle {
    /// For a device with these limits, beginning with full buckets; makes its timer, if one is needed.
    pub fn new(limits: &RateLimits, clock: Clock, throttled: Counter) -> io::Result<Self> {
        let limit = match Limiter::new(limits, clock.now()) {
            None => None,
            Some(limiter) => Some(Limit {
                limiter: Arc::new(Mutex::new(limiter)),
                clock,
                timer: Timer::new()?,
                until: None,
            }),
        };
        Ok(Self { limit, throttled })
    }

    /// Another worker's side of the same limit.
    pub fn share(&self) -> io::Result<Self> {
        let share = |limit: &Limit| {
            Ok::<_, io::Error>(Limit {
                limiter: limit.limiter.clone(),
                clock: limit.clock.clone(),
                timer: Timer::new()?,
                until: None,
            })
        };
        Ok(Self {
            limit: self.limit.as_ref().map(share).transpose()?,
            throttled: self.throttled.clone(),
        })
    }

    /// Whether there is a limit at all.
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether a request waits. Then no other is to be taken.
    pub fn is_waiting(&self) -> bool {
        self.until().is_some()
    }

    fn until(&self) -> Option<u64> {
        self.limit.as_ref().and_then(|limit| limit.until)
    }

    /// Whether one operation with so many bytes may be done now. If not, it has to be asked about again once the timer
    /// has rung.
    pub fn admits(&mut self, bytes: u64) -> bool {
        match &mut self.limit {
            None => true,
            Some(limit) => limit.admits(bytes, &self.throttled),
        }
    }

    /// Lets `waiter` hear the timer.
    pub fn watch(&self, waiter: &Waiter, token: u64) -> io::Result<()> {
        match &self.limit {
            None => Ok(()),
            Some(limit) => waiter.add(&limit.timer, token, Trigger::Level),
        }
    }

    /// The timer has rung, or the queues are new: nothing waits any more.
    pub fn woken(&mut self) {
        if let Some(limit) = &mut self.limit {
            // Empty if it has not rung.
            let _ = rustix::io::read(&limit.timer.0, &mut [0; 8]);
            limit.until = None;
        }
    }

    /// Does what the timer would, if by the clock it is time.
    #[cfg(test)]
    pub(crate) fn ring(&mut self) {
        if let Some(limit) = &self.limit
            && limit.until.is_some_and(|until| until <= limit.clock.now())
        {
            self.woken();
        }
    }
}

impl Limit {
    fn admits(&mut self, bytes: u64, throttled: &Counter) -> bool {
        let now = self.clock.now();
        let wait = self
            .limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(bytes, now);
        // Without its timer a request would wait for ever; better too much than that.
        if wait == 0 || self.timer.set(wait).is_err() {
            return true;
        }
        self.until = Some(now.saturating_add(wait));
        throttled.count();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn limits(operations: u64) -> RateLimits {
        RateLimits {
            operations_per_second: Some(operations),
            operations_burst: Some(1),
            ..RateLimits::default()
        }
    }

    #[test]
    fn without_limits_everything_passes_and_there_is_no_timer() {
        let mut throttle = Throttle::new(
            &RateLimits::default(),
            Clock::monotonic(),
            Counter::default(),
        )
        .unwrap();
        assert!(throttle.limit.is_none() && !throttle.is_limited());
        assert!((0..1000).all(|_| throttle.admits(u64::MAX)));
        assert!(!throttle.is_waiting());
    }

    #[test]
    fn the_timer_rings_when_the_next_one_may_pass() {
        let throttled = Counter::default();
        let mut throttle =
            Throttle::new(&limits(100), Clock::monotonic(), throttled.clone()).unwrap();
        let mut waiter = Waiter::new().unwrap();
        throttle.watch(&waiter, 7).unwrap();
        assert!(throttle.admits(1));
        for round in 1..=3 {
            assert!(!throttle.admits(1) && throttle.is_waiting());
            assert_eq!(waiter.wait().unwrap().collect::<Vec<_>>(), [7]);
            throttle.woken();
            assert!(!throttle.is_waiting());
            assert!(throttle.admits(1), "round {round}");
            assert_eq!(throttled.get(), round);
        }
        assert_eq!(waiter.look().unwrap().count(), 0);
    }

    #[test]
    fn workers_of_a_device_have_one_limit_together() {
        let hand = Arc::new(AtomicU64::new(0));
        let clock = Clock::Hand(hand.clone());
        let mut first = Throttle::new(&limits(1), clock, Counter::default()).unwrap();
        let mut second = first.share().unwrap();
        assert!(first.admits(1) && !second.admits(1));
        hand.store(1_000_000_000, Ordering::Relaxed);
        second.ring();
        assert!(second.admits(1) && !first.admits(1));
        assert_eq!(first.throttled.get(), 2);
    }
}
