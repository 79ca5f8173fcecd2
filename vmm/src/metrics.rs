//! Counters the parts hold, read by the control socket.
//!
//! A part asks the [`Registry`] for a counter once, while the machine is built, and keeps it; counting is one relaxed
//! atomic addition. Names carry their unit (`_total`, `_bytes_total`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A number that only grows. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of a machine, by name.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<String, Counter>>>);

impl Registry {
    /// The counter called `name`, made at the first call.
    pub fn counter(&self, name: impl Into<String>) -> Counter {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.into())
            .or_default()
            .clone()
    }

    /// Lists a counter that a part made for itself.
    pub fn insert(&self, name: impl Into<String>, counter: Counter) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.into(), counter);
    }

    /// All values now.
    pub fn read(&self) -> BTreeMap<String, u64> {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counters
            .iter()
            .map(|(name, counter)| (name.clone(), counter.get()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_and_names_share_a_counter() {
        let registry = Registry::default();
        let exits = registry.counter("exits_total");
        exits.clone().add(2);
        registry.counter("exits_total").count();
        assert_eq!(
            registry.read(),
            BTreeMap::from([("exits_total".to_owned(), 3)])
        );
    }
}
