//! Failed attempts to prove oneself, by address and name, and by address alone.
//!
//! Guessing one password from one address stops after a few attempts; trying many names from one address a little
//! later. The table is bounded: a flood from many addresses pushes out the oldest entries, not the daemon's memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::{ApiError, ErrorCode};

/// Entries kept.
const ENTRIES_MAX: usize = 8192;
/// An address may fail so many times more often than one name from it.
const ADDRESS_FACTOR: u32 = 4;

/// Whom a failure is counted against: an address (IPv6: its /64, which is what one customer has), and maybe a name.
type Key = (IpAddr, Option<String>);

/// Counts failures.
#[derive(Debug)]
pub struct Throttle {
    max: u32,
    window: Duration,
    failures: Mutex<HashMap<Key, Failures>>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    since: Instant,
}

impl Throttle {
    /// At most `max` failures within `window`.
    pub fn new(max: u32, window: Duration) -> Self {
        Self {
            max,
            window,
            failures: Mutex::new(HashMap::new()),
        }
    }

    /// Refuses when there were too many failures. Counts the attempt as a failure until [`Throttle::succeeded`]:
    /// many attempts at once are counted before the first is judged.
    pub fn attempt(&self, address: IpAddr, name: &str) -> Result<(), ApiError> {
        self.attempt_at(address, name, Instant::now())
    }

    fn attempt_at(&self, address: IpAddr, name: &str, now: Instant) -> Result<(), ApiError> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys(address, name);
        let limits = [self.max, self.max.saturating_mul(ADDRESS_FACTOR)];
        for (key, limit) in keys.iter().zip(limits) {
            if let Some(seen) = failures.get(key)
                && seen.count >= limit
                && now.duration_since(seen.since) < self.window
            {
                let left = self
                    .window
                    .saturating_sub(now.duration_since(seen.since))
                    .as_secs()
                    + 1;
                return Err(ApiError::new(
                    ErrorCode::RateLimited,
                    "too many failed attempts",
                    format!("wait {left} seconds, then try again"),
                ));
            }
        }
        if failures.len() + keys.len() > ENTRIES_MAX {
            make_room(&mut failures, now, self.window);
        }
        for key in keys {
            let entry = failures.entry(key).or_insert(Failures {
                count: 0,
                since: now,
            });
            if now.duration_since(entry.since) >= self.window {
                *entry = Failures {
                    count: 0,
                    since: now,
                };
            }
            entry.count = entry.count.saturating_add(1);
        }
        Ok(())
    }

    /// The attempt was a good one: the name's failures are forgotten, the address's one less.
    pub fn succeeded(&self, address: IpAddr, name: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let [with_name, alone] = keys(address, name);
        failures.remove(&with_name);
        if let Some(entry) = failures.get_mut(&alone) {
            entry.count = entry.count.saturating_sub(1);
        }
    }
}

fn keys(address: IpAddr, name: &str) -> [Key; 2] {
    let address = match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        },
        v4 => v4,
    };
    [(address, Some(name.to_owned())), (address, None)]
}

fn make_room(failures: &mut HashMap<Key, Failures>, now: Instant, window: Duration) {
    failures.retain(|_, seen| now.duration_since(seen.since) < window);
    if failures.len() > ENTRIES_MAX / 2 {
        let mut times: Vec<Instant> = failures.values().map(|seen| seen.since).collect();
        let (_, median, _) = times.select_nth_unstable(failures.len() / 2);
        let median = *median;
        failures.retain(|_, seen| seen.since > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn window() -> Duration {
        Duration::from_secs(300)
    }

    #[test]
    fn the_sixth_attempt_waits_and_another_name_does_not() {
        let throttle = Throttle::new(5, window());
        let start = Instant::now();
        for _ in 0..5 {
            throttle.attempt_at(HOME, "ann", start).unwrap();
        }
        let refused = throttle.attempt_at(HOME, "ann", start).unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        throttle.attempt_at(HOME, "bob", start).unwrap();
        throttle.attempt_at(HOME, "ann", start + window()).unwrap();
    }

    #[test]
    fn success_forgets_failures() {
        let throttle = Throttle::new(5, window());
        let start = Instant::now();
        for _ in 0..40 {
            throttle.attempt_at(HOME, "ann", start).unwrap();
            throttle.succeeded(HOME, "ann");
        }
    }

    #[test]
    fn many_names_from_one_address_wait_too() {
        let throttle = Throttle::new(5, window());
        let start = Instant::now();
        let refused = (0..100).find(|n| {
            throttle
                .attempt_at(HOME, &format!("user-{n}"), start)
                .is_err()
        });
        assert_eq!(refused, Some(20));
    }

    #[test]
    fn a_flood_does_not_grow_the_table() {
        let throttle = Throttle::new(5, window());
        let start = Instant::now();
        for n in 0..(3 * ENTRIES_MAX as u32) {
            let address = IpAddr::V4(n.into());
            throttle
                .attempt_at(address, "ann", start + Duration::from_micros(n.into()))
                .unwrap();
        }
        assert!(throttle.failures.lock().unwrap().len() <= ENTRIES_MAX);
    }

    #[test]
    fn a_customers_many_ipv6_addresses_count_as_one() {
        let throttle = Throttle::new(1, window());
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let two: IpAddr = "2001:db8::2".parse().unwrap();
        throttle.attempt(one, "ann").unwrap();
        assert!(throttle.attempt(two, "ann").is_err());
    }
}
