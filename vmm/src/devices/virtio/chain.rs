//! Walking what a driver has put into a queue (virtio 1.3 §2.7), trusting none of it.
//!
//! `virtio-queue` bounds every walk, but ends a broken chain as if it were a short one. Here a chain is taken apart into
//! its readable and its writable part, whole or not at all, into vectors that are used again for the next one.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::disk::IoVec;
use crate::memory::GuestMemory;

/// The driver has made a queue unusable: the device stops it and asks to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenQueue {
    /// The available index is further ahead than the ring is long, or the ring cannot be read.
    #[error("the available ring makes no sense")]
    Available,
    /// The used ring cannot be written.
    #[error("the used ring cannot be written")]
    Used,
    /// No descriptor, a loop, or a link or an indirect table that leads nowhere.
    #[error("a descriptor chain has no end")]
    Endless,
    /// Readable descriptors behind writable ones (virtio 1.3 §2.7.4.2).
    #[error("a descriptor chain has readable buffers behind writable ones")]
    Order,
    /// More descriptors than the device allows.
    #[error("a descriptor chain has too many buffers")]
    TooLong,
    /// No room for a request's header or its status.
    #[error("a descriptor chain is too short for a request")]
    Short,
    /// A buffer is not in guest memory.
    #[error("a descriptor points outside of guest memory")]
    Outside,
}

/// Flag in the available ring: the driver is looking already (virtio 1.3 §2.7.7).
const NO_INTERRUPT: u16 = 1;

/// Takes the next chain that the driver has made available.
pub fn pop<'m>(
    queue: &mut Queue,
    mem: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, BrokenQueue> {
    let mut available = queue.iter(mem).map_err(|_| BrokenQueue::Available)?;
    Ok(available.next())
}

/// Leaves the chain that was taken last in the ring after all: it is the next one again.
pub fn put_back(queue: &mut Queue) {
    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
}

/// Gives a chain back to the driver, with the number of bytes written to it.
pub fn push_used(
    queue: &mut Queue,
    mem: &GuestMemory,
    head: u16,
    len: u32,
) -> Result<(), BrokenQueue> {
    queue
        .add_used(mem, head, len)
        .map_err(|_| BrokenQueue::Used)
}

/// Gives several chains back at once: the driver sees all of them or none.
pub fn push_used_together(
    queue: &mut Queue,
    mem: &GuestMemory,
    entries: &[(u16, u32)],
) -> Result<(), BrokenQueue> {
    let size = queue.size();
    if entries.len() > usize::from(size) || entries.iter().any(|(head, _)| *head >= size) {
        return Err(BrokenQueue::Used);
    }
    let used = GuestAddress(queue.used_ring());
    let mut index = queue.next_used();
    for (head, len) in entries {
        // The whole ring was found in guest memory when the queue was enabled, so no sum overflows.
        let at = used.unchecked_add(4 + 8 * u64::from(index % size));
        let entry = u64::from(*head) | u64::from(*len) << 32;
        mem.write_obj(entry.to_le_bytes(), at)
            .map_err(|_| BrokenQueue::Used)?;
        index = index.wrapping_add(1);
    }
    // The entries before the index that says that they are there.
    mem.store(index.to_le(), used.unchecked_add(2), Ordering::Release)
        .map_err(|_| BrokenQueue::Used)?;
    queue.set_next_used(index);
    Ok(())
}

/// Whether the driver wants to be interrupted for what was pushed since the used index was `since`. For queues that are
/// given back to by [`push_used_together`], which [`wants_interrupt`] does not know of.
pub fn wants_interrupt_since(
    queue: &Queue,
    mem: &GuestMemory,
    since: u16,
) -> Result<bool, BrokenQueue> {
    let now = queue.next_used();
    if now == since {
        return Ok(false);
    }
    // What was pushed must be visible before we look at what the driver wants.
    fence(Ordering::SeqCst);
    let available = GuestAddress(queue.avail_ring());
    let load = |at| {
        mem.load::<u16>(at, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|_| BrokenQueue::Available)
    };
    if queue.event_idx_enabled() {
        let event = load(available.unchecked_add(4 + 2 * u64::from(queue.size())))?;
        // virtio 1.3 §2.7.7.2, vring_need_event().
        Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(since))
    } else {
        Ok(load(available)? & NO_INTERRUPT == 0)
    }
}

/// Whether the driver wants to be interrupted for what was pushed since the last call.
pub fn wants_interrupt(queue: &mut Queue, mem: &GuestMemory) -> Result<bool, BrokenQueue> {
    queue.needs_notification(mem).map_err(|_| BrokenQueue::Used)
}

/// Asks the driver not to notify us: we are looking already.
pub fn hush(queue: &mut Queue, mem: &GuestMemory) -> Result<(), BrokenQueue> {
    queue
        .disable_notification(mem)
        .map_err(|_| BrokenQueue::Used)
}

/// Asks the driver to notify us again; true when there is something already.
pub fn listen(queue: &mut Queue, mem: &GuestMemory) -> Result<bool, BrokenQueue> {
    queue
        .enable_notification(mem)
        .map_err(|_| BrokenQueue::Used)
}

/// A part of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub addr: GuestAddress,
    /// Bytes; never zero.
    pub len: u32,
}

/// One side of a chain: the buffers the device may read, or those it may write.
#[derive(Debug, Clone, Default)]
pub struct Segments {
    list: Vec<Segment>,
    len: u64,
}

impl Segments {
    /// With room for `capacity` segments.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            list: Vec::with_capacity(capacity),
            len: 0,
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments in order.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        self.list.iter().copied()
    }

    /// Forgets all segments and keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
        self.len = 0;
    }

    fn push(&mut self, segment: Segment) {
        self.list.push(segment);
        self.len += u64::from(segment.len);
    }

    /// Takes `count` bytes away from the front; false, and nothing is taken, if there are fewer.
    pub fn advance(&mut self, count: u64) -> bool {
        if count > self.len {
            return false;
        }
        let mut left = count;
        let mut gone = 0;
        for segment in &mut self.list {
            let here = left.min(u64::from(segment.len));
            left -= here;
            if here == u64::from(segment.len) {
                gone += 1;
            } else {
                // In range: the whole segment was checked when it was gathered.
                segment.addr = GuestAddress(segment.addr.0.wrapping_add(here));
                segment.len -= here as u32;
                break;
            }
        }
        self.list.drain(..gone);
        self.len -= count;
        true
    }

    /// Where the byte at `offset` is.
    pub fn address_of(&self, offset: usize) -> Option<GuestAddress> {
        let mut left = offset as u64;
        for segment in &self.list {
            if left < u64::from(segment.len) {
                return Some(GuestAddress(segment.addr.0.wrapping_add(left)));
            }
            left -= u64::from(segment.len);
        }
        None
    }

    /// Takes the last byte away and says where it is.
    pub fn pop_last_byte(&mut self) -> Option<GuestAddress> {
        let last = self.list.last_mut()?;
        let at = GuestAddress(last.addr.0.wrapping_add(u64::from(last.len) - 1));
        last.len -= 1;
        if last.len == 0 {
            self.list.pop();
        }
        self.len -= 1;
        Some(at)
    }

    /// Copies the first `data.len()` bytes out of guest memory; false if there are fewer.
    pub fn read(&self, mem: &GuestMemory, data: &mut [u8]) -> bool {
        let mut rest = data;
        for segment in &self.list {
            let here = rest.len().min(segment.len as usize);
            let (now, later) = rest.split_at_mut(here);
            if mem.read_slice(now, segment.addr).is_err() {
                return false;
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        rest.is_empty()
    }

    /// Copies `data` to the front of the segments; says how many bytes had room.
    pub fn write(&self, mem: &GuestMemory, data: &[u8]) -> usize {
        let mut rest = data;
        for segment in &self.list {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
            if mem.write_slice(now, segment.addr).is_err() {
                break;
            }
            rest = later;
        }
        data.len() - rest.len()
    }

    /// Appends where the segments are in this process, for a system call; false if they are not in guest memory.
    pub fn host_buffers(&self, mem: &GuestMemory, buffers: &mut Vec<IoVec>) -> bool {
        for segment in &self.list {
            for slice in GuestMemoryBackend::get_slices(mem, segment.addr, segment.len as usize) {
                let Ok(slice) = slice else { return false };
                buffers.push(IoVec::new(slice.ptr_guard_mut().as_ptr(), slice.len()));
            }
        }
        true
    }
}

/// A chain, taken apart.
#[derive(Debug, Default)]
pub struct Buffers {
    /// What the driver has written for us.
    pub readable: Segments,
    /// What we may write.
    pub writable: Segments,
}

impl Buffers {
    /// With room for chains of `segments_max` descriptors.
    pub fn with_capacity(segments_max: usize) -> Self {
        Self {
            readable: Segments::with_capacity(segments_max),
            writable: Segments::with_capacity(segments_max),
        }
    }

    /// Takes `chain` apart. After an error the contents mean nothing.
    pub fn gather(
        &mut self,
        chain: DescriptorChain<&GuestMemory>,
        mem: &GuestMemory,
        segments_max: usize,
    ) -> Result<(), BrokenQueue> {
        self.readable.clear();
        self.writable.clear();
        let mut ended = false;
        for (count, descriptor) in chain.enumerate() {
            if count == segments_max {
                return Err(BrokenQueue::TooLong);
            }
            // The walk ends early, without a word, where it cannot go on: then the last one seen has a successor.
            ended = !descriptor.has_next();
            let segment = Segment {
                addr: descriptor.addr(),
                len: descriptor.len(),
            };
            if segment.len == 0 {
                continue;
            }
            if !GuestMemoryBackend::check_range(mem, segment.addr, segment.len as usize) {
                return Err(BrokenQueue::Outside);
            }
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return Err(BrokenQueue::Order);
            }
        }
        if ended {
            Ok(())
        } else {
            Err(BrokenQueue::Endless)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{DriverRing, INDIRECT, NEXT, WRITE, memory};
    use super::*;

    fn gather(ring: &mut DriverRing, segments_max: usize) -> Result<Buffers, BrokenQueue> {
        let mem = ring.mem.clone();
        let mut buffers = Buffers::default();
        let chain = pop(&mut ring.queue(), &mem)?.unwrap();
        buffers.gather(chain, &mem, segments_max).map(|()| buffers)
    }

    #[test]
    fn a_chain_is_taken_apart_in_order() {
        let mut ring = DriverRing::new(memory(), 8);
        ring.descriptor(0, 0x8000, 16, NEXT, 1);
        ring.descriptor(1, 0x9000, 0, NEXT, 2);
        ring.descriptor(2, 0xa000, 512, NEXT | WRITE, 3);
        ring.descriptor(3, 0xb000, 1, WRITE, 0);
        ring.offer(0);
        let mut buffers = gather(&mut ring, 8).unwrap();
        assert_eq!((buffers.readable.len(), buffers.writable.len()), (16, 513));
        assert_eq!(buffers.writable.pop_last_byte(), Some(GuestAddress(0xb000)));
        assert_eq!(buffers.writable.len(), 512);
        assert!(buffers.writable.advance(12));
        assert_eq!(
            buffers.writable.iter().collect::<Vec<_>>(),
            [Segment {
                addr: GuestAddress(0xa00c),
                len: 500
            }]
        );
        assert!(!buffers.writable.advance(501));
    }

    #[test]
    fn an_indirect_chain_is_followed() {
        let mut ring = DriverRing::new(memory(), 8);
        ring.descriptor(2, 0x8000, 32, INDIRECT, 0);
        ring.raw_descriptor(0x8000, 0x9000, 16, NEXT, 1);
        ring.raw_descriptor(0x8010, 0xa000, 64, WRITE, 0);
        ring.offer(2);
        let buffers = gather(&mut ring, 8).unwrap();
        assert_eq!((buffers.readable.len(), buffers.writable.len()), (16, 64));
    }

    #[test]
    fn broken_chains_are_told_from_short_ones() {
        let broken = |describe: &dyn Fn(&DriverRing), head: u16| {
            let mut ring = DriverRing::new(memory(), 8);
            describe(&ring);
            ring.offer(head);
            gather(&mut ring, 6).map(drop).unwrap_err()
        };
        let to_itself = |ring: &DriverRing| ring.descriptor(0, 0x8000, 16, NEXT, 0);
        assert_eq!(broken(&to_itself, 0), BrokenQueue::TooLong);
        let nowhere = |ring: &DriverRing| ring.descriptor(0, 0x8000, 16, NEXT, 9);
        assert_eq!(broken(&nowhere, 0), BrokenQueue::Endless);
        assert_eq!(broken(&nowhere, 8), BrokenQueue::Endless);
        let bad_table = |ring: &DriverRing| ring.descriptor(0, 0x8000, 17, INDIRECT, 0);
        assert_eq!(broken(&bad_table, 0), BrokenQueue::Endless);
        let nested = |ring: &DriverRing| {
            ring.descriptor(0, 0x8000, 16, INDIRECT, 0);
            ring.raw_descriptor(0x8000, 0x8000, 16, INDIRECT, 0);
        };
        assert_eq!(broken(&nested, 0), BrokenQueue::Endless);
        let outside = |ring: &DriverRing| ring.descriptor(0, u64::MAX - 3, 16, 0, 0);
        assert_eq!(broken(&outside, 0), BrokenQueue::Outside);
        let across = |ring: &DriverRing| ring.descriptor(0, 0x1f_fff8, 16, 0, 0);
        assert_eq!(broken(&across, 0), BrokenQueue::Outside);
        let order = |ring: &DriverRing| {
            ring.descriptor(0, 0x8000, 16, NEXT | WRITE, 1);
            ring.descriptor(1, 0x8000, 16, 0, 0);
        };
        assert_eq!(broken(&order, 0), BrokenQueue::Order);
    }

    #[test]
    fn a_loop_as_long_as_the_ring_ends() {
        let mut ring = DriverRing::new(memory(), 4);
        for index in 0..4 {
            ring.descriptor(index, 0x8000, 16, NEXT, (index + 1) % 4);
        }
        ring.offer(0);
        assert_eq!(gather(&mut ring, 100).map(drop), Err(BrokenQueue::Endless));
    }

    #[test]
    fn an_index_that_ran_away_breaks_the_queue() {
        let mut ring = DriverRing::new(memory(), 4);
        ring.set_available_index(5);
        let mem = ring.mem.clone();
        assert_eq!(
            pop(&mut ring.queue(), &mem).map(drop),
            Err(BrokenQueue::Available)
        );
    }

    #[test]
    fn chains_given_back_together_appear_together_and_interrupt_as_the_driver_asked() {
        let mut ring = DriverRing::new(memory(), 4);
        let mem = ring.mem.clone();
        let mut queue = ring.queue();
        push_used_together(&mut queue, &mem, &[(3, 7), (1, 8), (2, 9)]).unwrap();
        assert_eq!(ring.take_used(), [(3, 7), (1, 8), (2, 9)]);
        push_used_together(&mut queue, &mem, &[(0, 1), (1, 2)]).unwrap();
        assert_eq!(
            ring.take_used(),
            [(0, 1), (1, 2)],
            "around the end of the ring"
        );
        assert_eq!(
            push_used_together(&mut queue, &mem, &[(4, 0)]),
            Err(BrokenQueue::Used)
        );
        assert_eq!(
            push_used_together(&mut queue, &mem, &[(0, 0); 5]),
            Err(BrokenQueue::Used)
        );

        assert_eq!(wants_interrupt_since(&queue, &mem, 0), Ok(true));
        assert_eq!(
            wants_interrupt_since(&queue, &mem, 5),
            Ok(false),
            "nothing new"
        );
        ring.write(ring.available, &[1, 0]);
        assert_eq!(wants_interrupt_since(&queue, &mem, 0), Ok(false));
        queue.set_event_idx(true);
        for (event, wanted) in [(1_u16, false), (2, true), (4, true), (5, false)] {
            ring.write(ring.available + 4 + 8, &event.to_le_bytes());
            assert_eq!(
                wants_interrupt_since(&queue, &mem, 2),
                Ok(wanted),
                "after entry {event}"
            );
        }
    }

    #[test]
    fn bytes_are_copied_across_segments_and_never_beyond() {
        let mut ring = DriverRing::new(memory(), 8);
        ring.descriptor(0, 0x8000, 3, NEXT | WRITE, 1);
        ring.descriptor(1, 0x9000, 2, WRITE, 0);
        ring.offer(0);
        let buffers = gather(&mut ring, 8).unwrap();
        assert_eq!(buffers.writable.write(&ring.mem, b"abcdefgh"), 5);
        let mut back = [0; 5];
        assert!(buffers.writable.read(&ring.mem, &mut back));
        assert_eq!(&back, b"abcde");
        assert!(!buffers.writable.read(&ring.mem, &mut [0; 6]));
        assert_eq!(ring.bytes(0x8000, 4), b"abc\0");
        assert_eq!(ring.bytes(0x9000, 3), b"de\0");
    }
}
