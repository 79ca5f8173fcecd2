//! Token buckets: how much may be done on average, and how much at once after a rest.
//!
//! A [`Limiter`] is told the time and never asks for it. What it lets through in any stretch of time `t` is at most
//! `burst + rate × t`, with one exception: a single request that is larger than the burst waits for a full bucket, passes,
//! and what it took too much is paid off before the next one. Everything is counted in whole billionths of a token, so
//! nothing is lost or won by rounding however often it is asked.

use std::time::Instant;
#[cfg(test)]
use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::config::RateLimits;

/// Parts of a token, and nanoseconds in a second: a rate of one token per second is one part per nanosecond.
const PARTS: i128 = 1_000_000_000;

/// What says how late it is.
#[derive(Debug, Clone)]
pub enum Clock {
    /// Since this instant.
    Monotonic(Instant),
    /// As a test sets it.
    #[cfg(test)]
    Hand(Arc<AtomicU64>),
}

impl Clock {
    /// From now on.
    pub fn monotonic() -> Self {
        Self::Monotonic(Instant::now())
    }

    /// Nanoseconds.
    pub fn now(&self) -> u64 {
        match self {
            Self::Monotonic(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            #[cfg(test)]
            Self::Hand(hand) => hand.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Clone)]
struct Bucket {
    /// Tokens per second, which is parts per nanosecond.
    rate: i128,
    /// Parts in a full bucket.
    burst: i128,
    /// Parts in it; less than nothing while something is paid off.
    level: i128,
    /// When it was that full.
    at: u64,
}

impl Bucket {
    /// A full one. No rate would never let anything through again, so there is none below one.
    fn new(rate: u64, burst: Option<u64>, now: u64) -> Self {
        let rate = rate.max(1);
        let burst = i128::from(burst.unwrap_or(rate).max(1)) * PARTS;
        Self {
            rate: i128::from(rate),
            burst,
            level: burst,
            at: now,
        }
    }

    fn fill(&mut self, now: u64) {
        // A clock that goes back gives nothing and takes nothing.
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let gained = self.rate.saturating_mul(i128::from(passed));
        self.level = self.level.saturating_add(gained).min(self.burst);
    }

    /// Nanoseconds until so many tokens may be taken; zero for now.
    fn wait(&self, tokens: u64) -> u64 {
        let needed = (i128::from(tokens) * PARTS).min(self.burst);
        let missing = needed - self.level;
        if tokens == 0 || missing <= 0 {
            return 0;
        }
        u64::try_from((missing - 1) / self.rate + 1).unwrap_or(u64::MAX)
    }

    fn pay(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * PARTS;
    }
}

/// Limits of bytes and of operations; a request has to pass both.
#[derive(Debug, Clone)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// With full buckets at the time `now`; none if nothing is limited.
    pub fn new(limits: &RateLimits, now: u64) -> Option<Self> {
        let bucket = |rate: Option<u64>, burst| rate.map(|rate| Bucket::new(rate, burst, now));
        let limiter = Self {
            bytes: bucket(limits.bytes_per_second, limits.bytes_burst),
            operations: bucket(limits.operations_per_second, limits.operations_burst),
        };
        (limiter.bytes.is_some() || limiter.operations.is_some()).then_some(limiter)
    }

    /// Lets one operation with so many bytes through and returns zero, or returns how many nanoseconds it has to wait.
    pub fn take(&mut self, bytes: u64, now: u64) -> u64 {
        let mut wait = 0;
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait(tokens));
            }
        }
        if wait == 0 {
            for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
                if let Some(bucket) = bucket {
                    bucket.pay(tokens);
                }
            }
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn bytes(rate: u64, burst: u64) -> RateLimits {
        RateLimits {
            bytes_per_second: Some(rate),
            bytes_burst: Some(burst),
            ..RateLimits::default()
        }
    }

    #[test]
    fn nothing_limited_is_no_limiter() {
        assert!(Limiter::new(&RateLimits::default(), 0).is_none());
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let mut limiter = Limiter::new(&bytes(1000, 3000), 7).unwrap();
        for _ in 0..3 {
            assert_eq!(limiter.take(1000, 7), 0);
        }
        assert_eq!(limiter.take(1000, 7), SECOND);
        assert_eq!(limiter.take(1000, 7 + SECOND - 1), 1);
        assert_eq!(limiter.take(1000, 7 + SECOND), 0);
        assert_eq!(limiter.take(0, 7 + SECOND), 0, "no bytes, no tokens");
        // However long the rest was.
        let late = 1000 * SECOND;
        assert_eq!(limiter.take(3000, late), 0);
        assert_eq!(limiter.take(1, late), SECOND / 1000);
    }

    #[test]
    fn the_burst_is_a_second_s_worth_if_nobody_says() {
        let limits = RateLimits {
            operations_per_second: Some(2),
            ..RateLimits::default()
        };
        let mut limiter = Limiter::new(&limits, 0).unwrap();
        assert_eq!(
            [0; 3].map(|_| limiter.take(u64::MAX, 0)),
            [0, 0, SECOND / 2]
        );
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_off() {
        let mut limiter = Limiter::new(&bytes(1000, 1000), 0).unwrap();
        assert_eq!(limiter.take(1, 0), 0);
        assert_eq!(
            limiter.take(5000, 0),
            SECOND / 1000,
            "the bucket is not full"
        );
        assert_eq!(limiter.take(5000, SECOND), 0);
        assert_eq!(limiter.take(1, SECOND), 4 * SECOND + SECOND / 1000);
    }

    #[test]
    fn what_one_bucket_refuses_the_other_one_does_not_pay() {
        let limits = RateLimits {
            operations_per_second: Some(1),
            operations_burst: Some(100),
            ..bytes(10, 10)
        };
        let mut limiter = Limiter::new(&limits, 0).unwrap();
        assert_eq!(limiter.take(10, 0), 0);
        for _ in 0..1000 {
            assert!(limiter.take(10, 0) > 0);
        }
        for _ in 0..99 {
            assert_eq!(limiter.take(0, 0), 0);
        }
        assert_eq!(limiter.take(0, 0), SECOND);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            rate in 1..10_000_u64,
            burst in 1..10_000_u64,
            asked in prop::collection::vec((0..2 * SECOND, 0..15_000_u64), 1..60),
        ) {
            let mut limiter = Limiter::new(&bytes(rate, burst), 0).unwrap();
            let (mut now, mut passed) = (0, Vec::new());
            for (pause, amount) in asked {
                now += pause;
                // What takes nothing passes even while something is paid off.
                if limiter.take(amount, now) == 0 && amount > 0 {
                    passed.push((now, i128::from(amount)));
                }
            }
            for first in 0..passed.len() {
                let mut sum = 0;
                for &(until, amount) in &passed[first..] {
                    sum += amount * PARTS;
                    let allowed = i128::from(burst).max(amount) * PARTS
                        + i128::from(rate) * i128::from(until - passed[first].0);
                    prop_assert!(sum <= allowed, "{sum} of {allowed}");
                }
            }
        }

        #[test]
        fn who_waits_as_long_as_told_passes_and_not_a_nanosecond_before(
            rate in 1..10_000_u64,
            burst in 1..10_000_u64,
            operations in prop::option::of(1..50_u64),
            asked in prop::collection::vec((0..SECOND, 0..15_000_u64), 1..60),
        ) {
            let limits = RateLimits { operations_per_second: operations, ..bytes(rate, burst) };
            let mut limiter = Limiter::new(&limits, 0).unwrap();
            let (mut now, mut sum, first) = (0, 0, asked[0].0);
            for (pause, amount) in asked {
                now += pause;
                let wait = limiter.take(amount, now);
                if wait > 0 {
                    // Never longer than paying off the largest request and filling the bucket, or the next operation.
                    prop_assert!(wait <= (15_000 + burst) * SECOND / rate + 1 + SECOND);
                    now += wait - 1;
                    prop_assert_eq!(limiter.take(amount, now), 1);
                    now += 1;
                    prop_assert_eq!(limiter.take(amount, now), 0);
                }
                // Nor did it pass too early by a part of a nanosecond.
                sum += i128::from(amount) * PARTS;
                let saved = i128::from(burst).max(amount.into()) * PARTS;
                let since_full = i128::from(now - first);
                prop_assert!(amount == 0 || sum <= saved + i128::from(rate) * since_full);
            }
        }

        /// Who asks all the time gets all there is, to the last token, however the time is cut into pieces.
        #[test]
        fn nothing_is_lost_or_won_by_asking_often(
            rate in 1..5000_u64,
            pauses in prop::collection::vec(0..SECOND / 10, 1..200),
        ) {
            let mut limiter = Limiter::new(&bytes(rate, 1 << 40), 0).unwrap();
            prop_assert_eq!(limiter.take(1 << 40, 0), 0);
            let (mut now, mut taken) = (0, 0_u64);
            for pause in pauses {
                now += pause;
                while limiter.take(1, now) == 0 {
                    taken += 1;
                }
                let earned = u128::from(now) * u128::from(rate) / u128::from(SECOND);
                prop_assert_eq!(u128::from(taken), earned);
            }
        }

        #[test]
        fn no_number_is_too_large_or_too_small(
            limits in (any::<[Option<u64>; 4]>()).prop_map(|[a, b, c, d]| RateLimits {
                bytes_per_second: a,
                bytes_burst: b,
                operations_per_second: c,
                operations_burst: d,
            }),
            extremes in any::<[bool; 4]>(),
            asked in prop::collection::vec((any::<u64>(), prop_oneof![any::<u64>(), Just(u64::MAX)]), 1..40),
        ) {
            let extreme = |value: Option<u64>, extreme: bool| value.map(|value| match (extreme, value % 2) {
                (true, 0) => 0,
                (true, _) => u64::MAX,
                (false, _) => value,
            });
            let limits = RateLimits {
                bytes_per_second: extreme(limits.bytes_per_second, extremes[0]),
                bytes_burst: extreme(limits.bytes_burst, extremes[1]),
                operations_per_second: extreme(limits.operations_per_second, extremes[2]),
                operations_burst: extreme(limits.operations_burst, extremes[3]),
            };
            if let Some(mut limiter) = Limiter::new(&limits, 0) {
                // Times in any order: forward they count, backward they do not.
                for (now, amount) in asked {
                    limiter.take(amount, now);
                }
                for bucket in [&limiter.bytes, &limiter.operations].into_iter().flatten() {
                    prop_assert!(bucket.level <= bucket.burst);
                }
            }
        }
    }
}
