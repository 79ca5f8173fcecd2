//! The control queue (virtio 1.3 §5.1.6.5): how many queue pairs are in use is all that can be controlled.

use std::sync::Arc;

use vm_memory::Bytes;

use super::metrics::NetCounters;
use crate::devices::virtio::chain::{self, BrokenQueue, Buffers};
use crate::devices::virtio::device::ActiveQueue;
use crate::memory::GuestMemory;
use crate::net::NetBackend;

const SEGMENTS_MAX: usize = 8;

/// Class and command of `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const SET_PAIRS: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERROR: u8 = 1;

/// All queues of a connection, of which the first so many are attached.
pub(super) struct Pairs {
    backends: Vec<Arc<dyn NetBackend>>,
}

impl Pairs {
    pub(super) fn new(backends: Vec<Arc<dyn NetBackend>>) -> Self {
        Self { backends }
    }

    /// Attaches the first `count` queues and detaches the others; a connection of one queue is always attached.
    pub(super) fn set(&self, count: usize) -> std::io::Result<()> {
        if self.backends.len() > 1 {
            for (at, backend) in self.backends.iter().enumerate() {
                backend.set_attached(at < count)?;
            }
        }
        Ok(())
    }

    fn follow(&self, command: &[u8]) -> bool {
        match *command {
            [class, command, low, high] if [class, command] == SET_PAIRS => {
                let count = usize::from(u16::from_le_bytes([low, high]));
                (1..=self.backends.len()).contains(&count) && self.set(count).is_ok()
            }
            _ => false,
        }
    }
}

/// Follows all commands in the queue.
pub(super) fn turn(
    queue: &mut ActiveQueue,
    mem: &GuestMemory,
    pairs: &Pairs,
    parts: &mut Buffers,
    counters: &NetCounters,
) -> Result<(), BrokenQueue> {
    let queue = &mut queue.queue;
    loop {
        chain::hush(queue, mem)?;
        while let Some(chain) = chain::pop(queue, mem)? {
            let head = chain.head_index();
            parts.gather(chain, mem, SEGMENTS_MAX)?;
            let ack_at = parts.writable.pop_last_byte().ok_or(BrokenQueue::Short)?;
            let mut command = [0; 4];
            let followed = parts.readable.len() == 4
                && parts.readable.read(mem, &mut command)
                && pairs.follow(&command);
            if !followed {
                counters.refused.count();
            }
            let ack = if followed { OK } else { ERROR };
            mem.write_obj(ack, ack_at)
                .map_err(|_| BrokenQueue::Outside)?;
            chain::push_used(queue, mem, head, 1)?;
        }
        if !chain::listen(queue, mem)? {
            return Ok(());
        }
    }
}
