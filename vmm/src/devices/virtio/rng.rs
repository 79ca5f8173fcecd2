//! Entropy source (virtio 1.3 §5.4): the driver offers buffers, the device fills them with random bytes.

use std::io;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, BrokenQueue, Buffers};
use super::device::{ActivateError, Activation, ActiveQueue, DeviceKind, VirtioDevice, feature};
use super::fault::FaultLog;
use super::wait::{Trigger, Waiter};
use super::worker::{QueueWorker, ServeError, Worker, idle_until};
use crate::memory::GuestMemory;
use crate::metrics::Counter;

const QUEUE_SIZES: [u16; 1] = [64];
/// Descriptors in one request.
const SEGMENTS_MAX: usize = 64;
/// Bytes for one request; a driver asks for 64 or so. A longer buffer is filled in part, which the used length says.
const REQUEST_MAX: u64 = 4096;

/// What the device counts.
#[derive(Debug)]
struct RngCounters {
    bytes: Counter,
    faults: FaultLog,
}

impl RngCounters {
    fn list(&self) -> Vec<(&'static str, Counter)> {
        vec![
            ("entropy_bytes_total", self.bytes.clone()),
            ("guest_errors_total", self.faults.total().clone()),
        ]
    }
}

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    worker: Worker,
    counters: Arc<RngCounters>,
}

impl Rng {
    /// An idle entropy device.
    pub fn new() -> io::Result<Self> {
        let counters = Arc::new(RngCounters {
            bytes: Counter::default(),
            faults: FaultLog::new("rng"),
        });
        let worker = RngWorker {
            counters: counters.clone(),
            buffers: Buffers::with_capacity(SEGMENTS_MAX),
        };
        Ok(Self {
            worker: Worker::spawn("rng", worker)?,
            counters,
        })
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        feature::COMMON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        self.worker.start(activation)
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.worker.stop()
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        self.counters.list()
    }
}

struct RngWorker {
    counters: Arc<RngCounters>,
    buffers: Buffers,
}

const STOP: u64 = 0;
const KICK: u64 = 1;

impl QueueWorker for RngWorker {
    fn run(&mut self, mut activation: Activation, stop: &EventFd) -> Vec<ActiveQueue> {
        if let Err(error) = self.serve(&mut activation, stop) {
            self.counters.faults.report(&error);
            activation.interrupt.fail();
            idle_until(stop);
        }
        activation.queues
    }
}

impl RngWorker {
    fn serve(&mut self, activation: &mut Activation, stop: &EventFd) -> Result<(), ServeError> {
        let Activation {
            mem,
            queues,
            interrupt,
            ..
        } = activation;
        let Some(active) = queues.first_mut() else {
            return Ok(());
        };
        let kick = active.kick.clone();
        let mut waiter = Waiter::new()?;
        waiter.add(stop, STOP, Trigger::Level)?;
        waiter.add(&*kick, KICK, Trigger::Level)?;
        loop {
            // Also once at the start: there may be requests from before the stop that preceded it.
            if self.process(active, mem)? {
                interrupt.signal_queue(active.index);
            }
            if waiter.wait()?.any(|token| token == STOP) {
                return Ok(());
            }
            let _ = kick.read();
        }
    }

    /// Answers all requests; true if the driver is to be interrupted.
    fn process(
        &mut self,
        active: &mut ActiveQueue,
        mem: &GuestMemory,
    ) -> Result<bool, BrokenQueue> {
        let queue = &mut active.queue;
        let mut answered = false;
        loop {
            chain::hush(queue, mem)?;
            while let Some(chain) = chain::pop(queue, mem)? {
                let head = chain.head_index();
                self.buffers.gather(chain, mem, SEGMENTS_MAX)?;
                let written = self.fill(mem);
                chain::push_used(queue, mem, head, written)?;
                answered = true;
            }
            if !chain::listen(queue, mem)? {
                return Ok(answered && chain::wants_interrupt(queue, mem)?);
            }
        }
    }

    fn fill(&self, mem: &GuestMemory) -> u32 {
        let mut entropy = [0; REQUEST_MAX as usize];
        let mut written = 0_u64;
        for segment in self.buffers.writable.iter() {
            let len = u64::from(segment.len).min(REQUEST_MAX - written) as usize;
            let random = &mut entropy[..len];
            // Short only for a signal or before the host's own pool is ready; the rest stays for the next request.
            let got = getrandom(&mut *random, GetRandomFlags::empty()).unwrap_or(0);
            if got == 0 || mem.write_slice(&random[..got], segment.addr).is_err() {
                break;
            }
            written += got as u64;
            if got < len {
                break;
            }
        }
        self.counters.bytes.add(written);
        written as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{DriverRing, NEXT, WRITE, activation, counter, memory};
    use super::*;
    use std::time::{Duration, Instant};

    fn until(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::yield_now();
        }
    }

    #[test]
    fn buffers_are_filled_and_queues_come_back_where_they_stopped() {
        let mem = memory();
        let mut ring = DriverRing::new(mem.clone(), 8);
        ring.descriptor(0, 0x8000, 64, NEXT | WRITE, 1);
        ring.descriptor(1, 0x9000, 64, WRITE, 0);
        ring.offer(0);
        let mut rng = Rng::new().unwrap();
        let active = ring.active(0);
        let kick = active.kick.clone();
        rng.activate(activation(mem.clone(), feature::COMMON, vec![active]))
            .unwrap();
        let mut used = Vec::new();
        until(|| {
            used.extend(ring.take_used());
            !used.is_empty()
        });
        assert_eq!(used, [(0, 128)]);
        assert_ne!(ring.bytes(0x8000, 64), [0; 64]);
        assert_ne!(ring.bytes(0x9000, 64), [0; 64]);
        ring.offer(0);
        kick.write(1).unwrap();
        until(|| !ring.take_used().is_empty());

        let queues = rng.stop();
        assert_eq!(queues[0].queue.state().next_avail, 2);
        assert_eq!(queues[0].queue.state().next_used, 2);
        assert!(rng.stop().is_empty());

        // And on it goes with the same queues.
        ring.offer(0);
        rng.activate(activation(mem, feature::COMMON, queues))
            .unwrap();
        until(|| !ring.take_used().is_empty());
        assert_eq!(counter(&rng, "entropy_bytes_total"), 3 * 128);
    }

    #[test]
    fn a_request_beyond_the_limit_is_filled_in_part() {
        let mem = memory();
        let mut ring = DriverRing::new(mem.clone(), 8);
        ring.descriptor(0, 0x10_0000, 0x10_0000, WRITE, 0);
        ring.offer(0);
        let mut rng = Rng::new().unwrap();
        rng.activate(activation(mem, feature::COMMON, vec![ring.active(0)]))
            .unwrap();
        until(|| ring.take_used() == [(0, REQUEST_MAX as u32)]);
    }

    #[test]
    fn a_broken_chain_stops_the_queue_and_asks_for_a_reset() {
        let mem = memory();
        let mut ring = DriverRing::new(mem.clone(), 8);
        ring.descriptor(0, 0xffff_0000, 64, WRITE, 0);
        ring.offer(0);
        let mut rng = Rng::new().unwrap();
        let activation = activation(mem, feature::COMMON, vec![ring.active(0)]);
        let interrupt = activation.interrupt.clone();
        rng.activate(activation).unwrap();
        until(|| interrupt.has_failed());
        assert_eq!(rng.stop().len(), 1);
        assert_eq!(ring.take_used(), []);
        assert_eq!(counter(&rng, "guest_errors_total"), 1);
    }
}
