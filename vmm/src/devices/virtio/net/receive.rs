//! Frames for the guest (virtio 1.3 §5.1.6.3).
//!
//! A frame is read once and copied into as many of the driver's chains as it needs; chains that were looked at in vain
//! stay in the ring. All chains of a frame are given back at once: a driver takes them together.

use virtio_queue::QueueT;
use vm_memory::Bytes;

use super::metrics::NetCounters;
use crate::devices::virtio::chain::{self, BrokenQueue, Buffers};
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::throttle::Throttle;
use crate::memory::GuestMemory;
use crate::net::{FRAME_MAX, HEADER_LEN, NetBackend};

/// Frames before the other direction has its turn.
const BATCH: usize = 128;
/// Descriptors in one chain: a driver without mergeable buffers spreads the longest frame over pages.
const SEGMENTS_MAX: usize = 64;
/// Where the header says over how many chains the frame is spread.
const NUM_BUFFERS: usize = 10;

pub(super) struct Receiver {
    frame: Box<[u8]>,
    /// Length of the frame that waits for buffers; zero if none does.
    waiting: usize,
    /// Whether the rate limit has let it through.
    admitted: bool,
    pub(super) throttle: Throttle,
    mergeable: bool,
    parts: Buffers,
    /// Chains the present frame went to.
    used: Vec<(u16, u32)>,
    /// Used index up to which the driver was interrupted, or did not want to be.
    told: u16,
}

impl Receiver {
    pub(super) fn new(throttle: Throttle) -> Self {
        Self {
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
            waiting: 0,
            admitted: false,
            throttle,
            mergeable: false,
            parts: Buffers::with_capacity(SEGMENTS_MAX),
            used: Vec::with_capacity(64),
            told: 0,
        }
    }

    /// Before the first turn of an activation.
    pub(super) fn prepare(&mut self, rx: &ActiveQueue, mergeable: bool) {
        self.waiting = 0;
        self.admitted = false;
        self.throttle.woken();
        self.mergeable = mergeable;
        self.told = rx.queue.next_used();
    }

    /// Delivers what there is, for a while; true if there may be more right now.
    pub(super) fn turn(
        &mut self,
        rx: &mut ActiveQueue,
        mem: &GuestMemory,
        backend: &dyn NetBackend,
        counters: &NetCounters,
    ) -> Result<bool, BrokenQueue> {
        if self.throttle.is_waiting() {
            return Ok(false);
        }
        chain::hush(&mut rx.queue, mem)?;
        for _ in 0..BATCH {
            if self.waiting == 0 {
                match backend.receive(&mut self.frame) {
                    Ok(len) if len >= HEADER_LEN => self.waiting = len,
                    // Not a frame; a tap does not do this.
                    Ok(_) => continue,
                    // No frame, or the device is down: we are woken when that changes.
                    Err(_) => return Ok(false),
                }
            }
            if !self.admitted {
                if !self.throttle.admits((self.waiting - HEADER_LEN) as u64) {
                    return Ok(false);
                }
                self.admitted = true;
            }
            loop {
                match self.deliver(rx, mem)? {
                    Delivery::Done => {
                        counters.received.count();
                        counters
                            .received_bytes
                            .add((self.waiting - HEADER_LEN) as u64);
                    }
                    Delivery::TooLong => counters.receive_drops.count(),
                    // Each time there are more buffers than before, so this ends.
                    Delivery::Again => continue,
                    Delivery::NoBuffer => return Ok(false),
                }
                break;
            }
            self.waiting = 0;
            self.admitted = false;
        }
        Ok(true)
    }

    /// Whether the driver wants to be interrupted for what was delivered since the last call.
    pub(super) fn wants_interrupt(
        &mut self,
        rx: &ActiveQueue,
        mem: &GuestMemory,
    ) -> Result<bool, BrokenQueue> {
        let since = std::mem::replace(&mut self.told, rx.queue.next_used());
        chain::wants_interrupt_since(&rx.queue, mem, since)
    }

    fn deliver(
        &mut self,
        rx: &mut ActiveQueue,
        mem: &GuestMemory,
    ) -> Result<Delivery, BrokenQueue> {
        let queue = &mut rx.queue;
        let first = queue.next_avail();
        let mut done = 0;
        self.used.clear();
        let mut num_buffers_at = None;
        while done < self.waiting {
            if self.used.len() == usize::from(queue.size()) {
                // Every buffer of the ring together is too short.
                queue.set_next_avail(first);
                return Ok(Delivery::TooLong);
            }
            let Some(chain) = chain::pop(queue, mem)? else {
                // We want to hear of the next buffer behind the ones that are too few, so ask before going back.
                let more = chain::listen(queue, mem)?;
                queue.set_next_avail(first);
                return Ok(if more {
                    Delivery::Again
                } else {
                    Delivery::NoBuffer
                });
            };
            let head = chain.head_index();
            self.parts.gather(chain, mem, SEGMENTS_MAX)?;
            let room = &self.parts.writable;
            if num_buffers_at.is_none() && room.len() < HEADER_LEN as u64
                || !self.mergeable && room.len() < self.waiting as u64
            {
                queue.set_next_avail(first);
                return Ok(Delivery::TooLong);
            }
            let here = room.write(mem, &self.frame[done..self.waiting]);
            if here == 0 {
                // An empty chain would make a frame last for ever.
                return Err(BrokenQueue::Short);
            }
            done += here;
            self.used.push((head, here as u32));
            if num_buffers_at.is_none() {
                num_buffers_at = room
                    .address_of(NUM_BUFFERS)
                    .zip(room.address_of(NUM_BUFFERS + 1));
            }
        }
        if let Some((low, high)) = num_buffers_at {
            let [first, second] = (self.used.len() as u16).to_le_bytes();
            let written = mem
                .write_obj(first, low)
                .and_then(|()| mem.write_obj(second, high));
            written.map_err(|_| BrokenQueue::Outside)?;
        }
        chain::push_used_together(queue, mem, &self.used)?;
        Ok(Delivery::Done)
    }
}

enum Delivery {
    Done,
    /// The driver has not offered enough buffers yet; it will tell us of more.
    NoBuffer,
    /// It has offered more in the meantime.
    Again,
    /// The frame fits into no buffer that this driver offers.
    TooLong,
}
