//! A NIC as the transport sees it.

use std::io;
use std::sync::Arc;

use super::control::Pairs;
use super::metrics::NetCounters;
use super::worker::NetWorker;
use crate::config::RateLimits;
use crate::devices::virtio::device::{
    ActivateError, Activation, ActiveQueue, DeviceKind, VirtioDevice, feature, read_config_bytes,
};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Worker;
use crate::metrics::Counter;
use crate::net::{NetBackend, Offloads};
use crate::rate_limit::Clock;

/// Frames the driver can have queued, in each direction.
const QUEUE_SIZE: u16 = 256;
/// Most queue pairs, which is far beyond what a host has processors for.
const PAIRS_MAX: usize = 64;

/// Feature bits (virtio 1.3 §5.1.3).
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
pub(super) const MERGEABLE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CONTROL: u64 = 1 << 17;
const MULTI_QUEUE: u64 = 1 << 22;

/// Status: the cable is plugged in.
const LINK_UP: u16 = 1;

/// What a NIC is to be.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Name in messages.
    pub id: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest payload of a frame in bytes; zero says nothing about it.
    pub mtu: u16,
    /// How much it receives.
    pub receive_limits: RateLimits,
    /// How much it sends.
    pub transmit_limits: RateLimits,
}

/// A virtio NIC.
pub struct Net {
    features: u64,
    queue_sizes: Vec<u16>,
    config: [u8; 12],
    /// One per queue pair.
    workers: Vec<Worker>,
    counters: Arc<NetCounters>,
}

impl Net {
    /// An idle NIC with a queue pair for each queue of its connection.
    pub fn new(config: &NetConfig, backends: Vec<Arc<dyn NetBackend>>) -> io::Result<Self> {
        let pairs = backends.len();
        if !(1..=PAIRS_MAX).contains(&pairs) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a NIC cannot have {pairs} queue pairs"),
            ));
        }
        let counters = Arc::new(NetCounters::new(&config.id));
        let throttle = |limits, throttled: &Counter| {
            Throttle::new(limits, Clock::monotonic(), throttled.clone())
        };
        // Of the NIC, not of each pair.
        let receive = throttle(&config.receive_limits, &counters.receive_throttled)?;
        let transmit = throttle(&config.transmit_limits, &counters.send_throttled)?;
        let mut all = Some(Pairs::new(backends.clone()));
        let workers = backends
            .into_iter()
            .map(|backend| {
                let throttles = [receive.share()?, transmit.share()?];
                let worker = NetWorker::new(backend, all.take(), counters.clone(), throttles);
                Worker::spawn(&format!("nic-{}", config.id), worker)
            })
            .collect::<io::Result<_>>()?;
        let queues = if pairs > 1 { 2 * pairs + 1 } else { 2 };
        Ok(Self {
            features: offered(config, pairs),
            queue_sizes: vec![QUEUE_SIZE; queues],
            config: config_bytes(config, pairs as u16),
            workers,
            counters,
        })
    }
}

fn offered(config: &NetConfig, pairs: usize) -> u64 {
    let mut features = feature::COMMON | MAC | STATUS | MERGEABLE;
    features |= CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
    features |= GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
    if config.mtu != 0 {
        features |= MTU;
    }
    if pairs > 1 {
        features |= CONTROL | MULTI_QUEUE;
    }
    features
}

/// `struct virtio_net_config` (virtio 1.3 §5.1.4), as far as features are offered for it.
fn config_bytes(config: &NetConfig, pairs: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&config.mac);
    bytes[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
    bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
    bytes[10..].copy_from_slice(&config.mtu.to_le_bytes());
    bytes
}

/// What a driver that accepted `features` can do with received frames.
pub(super) fn offloads(features: u64) -> Offloads {
    Offloads {
        checksum: features & GUEST_CSUM != 0,
        tcp4: features & GUEST_TSO4 != 0,
        tcp6: features & GUEST_TSO6 != 0,
        ecn: features & GUEST_ECN != 0,
    }
}

/// Which pair's worker serves queue `index`, for a driver that knows `pairs` pairs (virtio 1.3 §5.1.2).
fn worker_of(index: u16, pairs: usize) -> Option<usize> {
    let pair = usize::from(index / 2);
    match index {
        control if usize::from(control) == 2 * pairs => Some(0),
        _ if pair < pairs => Some(pair),
        _ => None,
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            mem,
            features,
            queues,
            interrupt,
        } = activation;
        let pairs = if features & MULTI_QUEUE != 0 {
            self.workers.len()
        } else {
            1
        };
        let mut shares: Vec<Vec<ActiveQueue>> = self.workers.iter().map(|_| Vec::new()).collect();
        for queue in queues {
            let share = worker_of(queue.index, pairs).and_then(|worker| shares.get_mut(worker));
            if let Some(share) = share {
                share.push(queue);
            }
        }
        // A pair is both or nothing, and the first one is not optional. Queues come by ascending index, so what follows
        // a pair in the first worker's share is the control queue.
        for (pair, share) in (0_u16..).zip(&shares) {
            let has = |index| share.iter().any(|queue| queue.index == index);
            for index in [2 * pair, 2 * pair + 1] {
                if !has(index) && (pair == 0 || !share.is_empty()) {
                    return Err(ActivateError::QueueMissing { index });
                }
            }
        }
        for (worker, queues) in self
            .workers
            .iter_mut()
            .zip(shares)
            .filter(|(_, queues)| !queues.is_empty())
        {
            worker.start(Activation {
                mem: mem.clone(),
                features,
                queues,
                interrupt: interrupt.clone(),
            })?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let mut queues: Vec<_> = self.workers.iter_mut().flat_map(Worker::stop).collect();
        queues.sort_by_key(|queue| queue.index);
        queues
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        self.counters.list()
    }
}
