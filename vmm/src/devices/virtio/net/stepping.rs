//! A NIC whose worker takes its turns when a test says so, over a connection that ends in the test.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::control::Pairs;
use super::device::MERGEABLE;
use super::metrics::NetCounters;
use super::worker::NetWorker;
use crate::config::RateLimits;
use crate::devices::virtio::device::Activation;
use crate::devices::virtio::harness::{DriverRing, activation};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::ServeError;
use crate::metrics::Counter;
use crate::net::fake::FakeNet;
use crate::net::{FRAME_MAX, HEADER_LEN, NetBackend};
use crate::rate_limit::Clock;

pub(crate) struct Stepped {
    worker: NetWorker,
    counters: Arc<NetCounters>,
    /// The network's end.
    pub(crate) net: UnixDatagram,
    activation: Activation,
    clock: Arc<AtomicU64>,
}

impl Stepped {
    /// With limits (receive, transmit) by a clock that stands still until [`Self::pass`].
    pub(crate) fn new(
        rx: &DriverRing,
        tx: &DriverRing,
        mergeable: bool,
        [receive, transmit]: [&RateLimits; 2],
    ) -> Self {
        let (backend, net) = FakeNet::pair();
        let counters = Arc::new(NetCounters::new("test"));
        let backend: Arc<dyn NetBackend> = Arc::new(backend);
        let pairs = Pairs::new(vec![backend.clone()]);
        let clock = Arc::new(AtomicU64::new(0));
        let throttle = |limits, throttled: &Counter| {
            Throttle::new(limits, Clock::Hand(clock.clone()), throttled.clone()).unwrap()
        };
        let throttles = [
            throttle(receive, &counters.receive_throttled),
            throttle(transmit, &counters.send_throttled),
        ];
        let mut worker = NetWorker::new(backend, Some(pairs), counters.clone(), throttles);
        let features = if mergeable { MERGEABLE } else { 0 };
        let activation = activation(rx.mem.clone(), features, vec![rx.active(0), tx.active(1)]);
        worker.prepare(&activation).unwrap();
        Self {
            worker,
            counters,
            net,
            activation,
            clock,
        }
    }

    /// Time passes, and the timers ring if they are due.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed);
        self.worker.throttles().into_iter().for_each(Throttle::ring);
    }

    /// Until there is nothing more to do.
    pub(crate) fn turn(&mut self) -> Result<(), ServeError> {
        while self.worker.turn(&mut self.activation)? {}
        Ok(())
    }

    /// A frame of this length, header included, unless too many wait already.
    pub(crate) fn arrive(&self, len: usize) {
        let _ = self.net.send(&vec![0x55; len]);
    }

    /// Takes what was sent.
    pub(crate) fn sent_frames_are_frames(&self) -> bool {
        let mut frame = vec![0; FRAME_MAX + 1];
        while let Ok(len) = self.net.recv(&mut frame) {
            if !(HEADER_LEN + 1..=FRAME_MAX).contains(&len) {
                return false;
            }
        }
        true
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.counters
            .list()
            .into_iter()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1
            .get()
    }
}
