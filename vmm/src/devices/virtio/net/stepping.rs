//! A NIC whose worker takes its turns when a test says so, over a connection that ends in the test.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use super::control::Pairs;
use super::device::MERGEABLE;
use super::metrics::NetCounters;
use super::worker::NetWorker;
use crate::devices::virtio::device::Activation;
use crate::devices::virtio::harness::{DriverRing, activation};
use crate::devices::virtio::worker::ServeError;
use crate::net::fake::FakeNet;
use crate::net::{FRAME_MAX, HEADER_LEN, NetBackend};

pub(crate) struct Stepped {
    worker: NetWorker,
    counters: Arc<NetCounters>,
    /// The network's end.
    pub(crate) net: UnixDatagram,
    activation: Activation,
}

impl Stepped {
    pub(crate) fn new(rx: &DriverRing, tx: &DriverRing, mergeable: bool) -> Self {
        let (backend, net) = FakeNet::pair();
        let counters = Arc::new(NetCounters::new("test"));
        let backend: Arc<dyn NetBackend> = Arc::new(backend);
        let pairs = Pairs::new(vec![backend.clone()]);
        let mut worker = NetWorker::new(backend, Some(pairs), counters.clone());
        let features = if mergeable { MERGEABLE } else { 0 };
        let activation = activation(rx.mem.clone(), features, vec![rx.active(0), tx.active(1)]);
        worker.prepare(&activation).unwrap();
        Self {
            worker,
            counters,
            net,
            activation,
        }
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
