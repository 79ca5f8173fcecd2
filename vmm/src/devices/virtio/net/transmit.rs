//! Frames from the guest (virtio 1.3 §5.1.6.2): sent from where they are in guest memory, without a copy of ours.

#![allow(unsafe_code)] // UNSAFETY: a backend is given addresses in guest memory; see `NetBackend::send`.

use super::metrics::NetCounters;
use crate::devices::virtio::chain::{self, BrokenQueue, Buffers};
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::throttle::Throttle;
use crate::disk::IoVec;
use crate::memory::GuestMemory;
use crate::net::{FRAME_MAX, HEADER_LEN, NetBackend};

/// Frames before the other direction has its turn.
const BATCH: usize = 128;
/// Descriptors in one frame. Linux uses up to 19; a frame of single pages has 18.
const SEGMENTS_MAX: usize = 64;

pub(super) struct Transmitter {
    parts: Buffers,
    buffers: Vec<IoVec>,
    pub(super) throttle: Throttle,
}

impl Transmitter {
    pub(super) fn new(throttle: Throttle) -> Self {
        Self {
            parts: Buffers::with_capacity(SEGMENTS_MAX),
            buffers: Vec::with_capacity(SEGMENTS_MAX),
            throttle,
        }
    }

    /// Sends what there is, for a while; true if there may be more right now.
    pub(super) fn turn(
        &mut self,
        tx: &mut ActiveQueue,
        mem: &GuestMemory,
        backend: &dyn NetBackend,
        counters: &NetCounters,
    ) -> Result<bool, BrokenQueue> {
        if self.throttle.is_waiting() {
            return Ok(false);
        }
        let queue = &mut tx.queue;
        chain::hush(queue, mem)?;
        for _ in 0..BATCH {
            let Some(chain) = chain::pop(queue, mem)? else {
                return chain::listen(queue, mem);
            };
            let head = chain.head_index();
            self.parts.gather(chain, mem, SEGMENTS_MAX)?;
            let payload = self.parts.readable.len().saturating_sub(HEADER_LEN as u64);
            // What is too long is not sent, and must not use up the limit either.
            if !self.throttle.admits(payload.min(FRAME_MAX as u64)) {
                chain::put_back(queue);
                return Ok(false);
            }
            self.send(mem, backend, counters);
            chain::push_used(queue, mem, head, 0)?;
        }
        Ok(true)
    }

    fn send(&mut self, mem: &GuestMemory, backend: &dyn NetBackend, counters: &NetCounters) {
        let frame = &self.parts.readable;
        self.buffers.clear();
        if frame.len() <= HEADER_LEN as u64
            || frame.len() > FRAME_MAX as u64
            || !frame.host_buffers(mem, &mut self.buffers)
        {
            return counters.refused.count();
        }
        // SAFETY: the buffers are guest memory, which `mem` keeps mapped.
        match unsafe { backend.send(&self.buffers) } {
            Ok(_) => {
                counters.sent.count();
                counters.sent_bytes.add(frame.len() - HEADER_LEN as u64);
            }
            // As on a wire: what cannot be sent is lost.
            Err(_) => counters.send_drops.count(),
        }
    }
}
