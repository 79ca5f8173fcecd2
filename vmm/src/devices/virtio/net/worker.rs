//! The thread of a queue pair: both directions in turn, and the control queue if it is the first pair's.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::control::{self, Pairs};
use super::device::offloads;
use super::metrics::NetCounters;
use super::receive::Receiver;
use super::transmit::Transmitter;
use crate::devices::virtio::chain::{self, Buffers};
use crate::devices::virtio::device::{Activation, ActiveQueue};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::wait::{Trigger, Waiter};
use crate::devices::virtio::worker::{QueueWorker, ServeError, idle_until};
use crate::net::{Arrivals, NetBackend};

/// Frames that may have piled up for a driver that is gone: the longest queue a tap has by default, twice.
const STALE_MAX: usize = 2000;

pub(super) struct NetWorker {
    backend: Arc<dyn NetBackend>,
    /// For the worker of the first pair, which also serves the control queue.
    pairs: Option<Pairs>,
    counters: Arc<NetCounters>,
    receiver: Receiver,
    transmitter: Transmitter,
    parts: Buffers,
}

impl NetWorker {
    pub(super) fn new(
        backend: Arc<dyn NetBackend>,
        pairs: Option<Pairs>,
        counters: Arc<NetCounters>,
        [receive, transmit]: [Throttle; 2],
    ) -> Self {
        Self {
            backend,
            pairs,
            counters,
            receiver: Receiver::new(receive),
            transmitter: Transmitter::new(transmit),
            parts: Buffers::default(),
        }
    }
}

const STOP: u64 = u64::MAX;
const FRAME: u64 = u64::MAX - 1;
const RECEIVE_LIMIT: u64 = u64::MAX - 2;
const TRANSMIT_LIMIT: u64 = u64::MAX - 3;

impl QueueWorker for NetWorker {
    fn run(&mut self, mut activation: Activation, stop: &EventFd) -> Vec<ActiveQueue> {
        if let Err(error) = self.serve(&mut activation, stop) {
            self.counters.faults.report(&error);
            activation.interrupt.fail();
            idle_until(stop);
        }
        activation.queues
    }
}

impl NetWorker {
    /// Sets the connection up for this driver. The first pair's worker does it for all of them.
    pub(super) fn prepare(&mut self, activation: &Activation) -> Result<(), ServeError> {
        if let Some(pairs) = &self.pairs {
            pairs.set(1)?;
            self.backend.set_offloads(offloads(activation.features))?;
        }
        // What came before the driver was ready may be more than it can take, such as unfinished segments.
        let mut stale = [0; 64];
        for _ in 0..STALE_MAX {
            if self.backend.receive(&mut stale).is_err() {
                break;
            }
        }
        if let Some(rx) = activation.queues.first() {
            self.transmitter.throttle.woken();
            self.receiver
                .prepare(rx, activation.features & super::device::MERGEABLE != 0);
        }
        Ok(())
    }

    fn serve(&mut self, activation: &mut Activation, stop: &EventFd) -> Result<(), ServeError> {
        let backend = self.backend.clone();
        let mut waiter = Waiter::new()?;
        waiter.add(stop, STOP, Trigger::Level)?;
        waiter.add(&Arrivals(&*backend), FRAME, Trigger::Edge)?;
        self.receiver.throttle.watch(&waiter, RECEIVE_LIMIT)?;
        self.transmitter.throttle.watch(&waiter, TRANSMIT_LIMIT)?;
        for (at, active) in (0..).zip(&activation.queues) {
            waiter.add(&*active.kick, at, Trigger::Level)?;
        }
        self.prepare(activation)?;
        loop {
            let more = self.turn(activation)?;
            let mut stopping = false;
            let mut handle = |token: u64| match token {
                STOP => stopping = true,
                FRAME => {}
                RECEIVE_LIMIT => self.receiver.throttle.woken(),
                TRANSMIT_LIMIT => self.transmitter.throttle.woken(),
                at => {
                    if let Some(active) = activation.queues.get(at as usize) {
                        // Empty if it was emptied since.
                        let _ = active.kick.read();
                    }
                }
            };
            if more {
                waiter.look()?.for_each(&mut handle);
            } else {
                waiter.wait()?.for_each(&mut handle);
            }
            if stopping {
                return Ok(());
            }
        }
    }

    /// A while of everything there is to do; true if there may be more right now.
    pub(super) fn turn(&mut self, activation: &mut Activation) -> Result<bool, ServeError> {
        let Activation {
            mem,
            queues,
            interrupt,
            ..
        } = activation;
        let [rx, tx, rest @ ..] = &mut queues[..] else {
            return Ok(false);
        };
        let more_to_send = self
            .transmitter
            .turn(tx, mem, &*self.backend, &self.counters)?;
        if chain::wants_interrupt(&mut tx.queue, mem)? {
            interrupt.signal_queue(tx.index);
        }
        let more_to_receive = self
            .receiver
            .turn(rx, mem, &*self.backend, &self.counters)?;
        if self.receiver.wants_interrupt(rx, mem)? {
            interrupt.signal_queue(rx.index);
        }
        if let (Some(queue), Some(pairs)) = (rest.first_mut(), &self.pairs) {
            control::turn(queue, mem, pairs, &mut self.parts, &self.counters)?;
            if chain::wants_interrupt(&mut queue.queue, mem)? {
                interrupt.signal_queue(queue.index);
            }
        }
        Ok(more_to_send || more_to_receive)
    }
}

#[cfg(test)]
impl NetWorker {
    pub(super) fn throttles(&mut self) -> [&mut Throttle; 2] {
        [&mut self.receiver.throttle, &mut self.transmitter.throttle]
    }
}
