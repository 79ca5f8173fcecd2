//! The thread that carries a disk's requests to its backend and the answers back.
//!
//! Each request in flight has a slot. There are as many as the queues are long, so a driver that makes chains available
//! again while they are in flight fills the slots and waits, and nothing grows.

#![allow(unsafe_code)] // UNSAFETY: a backend is given addresses in guest memory; see `DiskBackend::submit`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::metrics::BlockCounters;
use super::request::{self, Action, Limits, SERIAL_LEN, Status};
use super::resize::{ResizeError, Size};
use crate::devices::virtio::chain::{self, BrokenQueue, Buffers};
use crate::devices::virtio::device::{Activation, ActiveQueue, VirtioInterrupt};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::wait::{Trigger, Waiter};
use crate::devices::virtio::worker::{QueueWorker, ServeError, idle_until};
use crate::disk::{DiskBackend, DiskOp, IoVec};
use crate::memory::GuestMemory;

/// Most descriptors of one chain.
pub(super) const SEGMENTS_MAX: usize = 256;

/// A request in flight, or room for one.
struct Slot {
    /// Index into the active queues.
    queue: usize,
    head: u16,
    status_at: GuestAddress,
    op: DiskOp,
    /// What of the data is still to be moved. The backend has its address while the request is in flight.
    buffers: Vec<IoVec>,
    /// Bytes in `buffers`.
    left: u64,
    /// Bytes moved so far.
    moved: u64,
}

const EMPTY: Slot = Slot {
    queue: 0,
    head: 0,
    status_at: GuestAddress(0),
    op: DiskOp::Flush,
    buffers: Vec::new(),
    left: 0,
    moved: 0,
};

pub(super) struct BlockWorker {
    backend: Box<dyn DiskBackend>,
    limits: Limits,
    size: Arc<Size>,
    /// It grew while no driver could be told.
    grew: bool,
    throttle: Throttle,
    /// The queue whose turn it is.
    next: usize,
    serial: [u8; SERIAL_LEN],
    counters: Arc<BlockCounters>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots whose request has to be submitted once more, for what is left of it.
    again: Vec<usize>,
    /// Slots whose request is over.
    over: VecDeque<(usize, Status)>,
    parts: Buffers,
}

impl BlockWorker {
    pub(super) fn new(
        backend: Box<dyn DiskBackend>,
        limits: Limits,
        size: Arc<Size>,
        throttle: Throttle,
        serial: [u8; SERIAL_LEN],
        counters: Arc<BlockCounters>,
    ) -> Self {
        Self {
            backend,
            limits,
            size,
            grew: false,
            throttle,
            next: 0,
            serial,
            counters,
            slots: Vec::new(),
            free: Vec::new(),
            again: Vec::new(),
            over: VecDeque::new(),
            parts: Buffers::with_capacity(SEGMENTS_MAX),
        }
    }
}

const STOP: u64 = u64::MAX;
const DONE: u64 = u64::MAX - 1;
const LIMIT: u64 = u64::MAX - 2;
const SIZE: u64 = u64::MAX - 3;

impl QueueWorker for BlockWorker {
    fn run(&mut self, mut activation: Activation, stop: &EventFd) -> Vec<ActiveQueue> {
        self.prepare(&activation.queues);
        if let Err(error) = self.serve(&mut activation, stop) {
            self.counters.faults.report(&error);
            activation.interrupt.fail();
            // What is in flight ends in guest memory that the driver may soon use for something else.
            self.drain(&mut activation);
            idle_until(stop);
        }
        activation.queues
    }

    fn called(&mut self) {
        self.grew |= self.grow();
    }
}

impl BlockWorker {
    /// Makes as many slots as can be in flight. Nothing is.
    pub(super) fn prepare(&mut self, queues: &[ActiveQueue]) {
        let count = queues
            .iter()
            .map(|active| usize::from(active.queue.state().size))
            .sum();
        self.slots.resize_with(count, || EMPTY);
        self.free.clear();
        self.free.extend(0..count);
        self.throttle.woken();
    }

    fn serve(&mut self, activation: &mut Activation, stop: &EventFd) -> Result<(), ServeError> {
        let mut waiter = Waiter::new()?;
        waiter.add(stop, STOP, Trigger::Level)?;
        waiter.add(self.backend.completion_event(), DONE, Trigger::Level)?;
        self.throttle.watch(&waiter, LIMIT)?;
        waiter.add(&self.size.event, SIZE, Trigger::Level)?;
        for (at, active) in (0..).zip(&activation.queues) {
            waiter.add(&*active.kick, at, Trigger::Level)?;
        }
        if std::mem::take(&mut self.grew) {
            // The driver may have read the capacity before that.
            activation.interrupt.signal_config();
        }
        loop {
            // Also once at the start: there may be requests from before the stop that preceded it.
            self.turn(
                &mut activation.queues,
                &activation.mem,
                &activation.interrupt,
            )?;
            let mut stopping = false;
            for token in waiter.wait()? {
                match token {
                    STOP => stopping = true,
                    DONE => drop(self.backend.completion_event().read()),
                    LIMIT => self.throttle.woken(),
                    SIZE => {
                        if self.grow() {
                            activation.interrupt.signal_config();
                        }
                    }
                    at => {
                        if let Some(active) = activation.queues.get(at as usize) {
                            // Empty if the doorbell of another queue woke us in between.
                            let _ = active.kick.read();
                        }
                    }
                }
            }
            if stopping {
                self.drain(activation);
                return Ok(());
            }
        }
    }

    /// Everything there is to do at this moment: answer what is over, begin what is new, interrupt the driver.
    pub(super) fn turn(
        &mut self,
        queues: &mut [ActiveQueue],
        mem: &GuestMemory,
        interrupt: &VirtioInterrupt,
    ) -> Result<(), BrokenQueue> {
        self.complete(queues, mem)?;
        self.take_all(queues, mem)?;
        // A ring that refuses everything (out of memory) is asked again at the next turn.
        let _ = self.backend.commit();
        for active in queues {
            // Says no where nothing was pushed, if the driver knows EVENT_IDX; if not, an interrupt too many is harmless.
            if chain::wants_interrupt(&mut active.queue, mem)? {
                interrupt.signal_queue(active.index);
            }
        }
        Ok(())
    }

    /// Gives the disk the size that is wanted, if one is; true if it is another one then.
    pub(super) fn grow(&mut self) -> bool {
        let Some(wanted) = self.size.take_wanted() else {
            return false;
        };
        let Limits { size, block, .. } = self.limits;
        let result = if wanted.size < size {
            Err(ResizeError::Smaller { have: size })
        } else if !wanted.size.is_multiple_of(block) {
            Err(ResizeError::Blocks { block })
        } else {
            let backend = self.backend.resize(wanted.size);
            // More than was asked for is none of the disk's.
            backend
                .map(|got| got.min(wanted.size).max(size) / block * block)
                .map_err(ResizeError::Backend)
        };
        if let Ok(size) = result {
            self.limits.size = size;
            self.size.set(size);
        }
        wanted.answer(result);
        self.limits.size != size
    }

    /// Takes what is in the queues. Where they share a limit it is one request of each in turn, beginning with the one
    /// that had to wait: none uses up what is for all.
    fn take_all(
        &mut self,
        queues: &mut [ActiveQueue],
        mem: &GuestMemory,
    ) -> Result<(), BrokenQueue> {
        let count = queues.len();
        let most = match self.throttle.is_limited() && count > 1 {
            true => 1,
            false => usize::MAX,
        };
        let mut more = true;
        while more {
            more = false;
            for _ in 0..count {
                if self.throttle.is_waiting() {
                    return Ok(());
                }
                let at = self.next % count;
                if let Some(active) = queues.get_mut(at) {
                    more |= self.take_requests(at, active, mem, most)?;
                }
                if !self.throttle.is_waiting() {
                    self.next = at + 1;
                }
            }
        }
        Ok(())
    }

    /// Takes up to so many requests; true if there may be more.
    fn take_requests(
        &mut self,
        at: usize,
        active: &mut ActiveQueue,
        mem: &GuestMemory,
        mut most: usize,
    ) -> Result<bool, BrokenQueue> {
        let queue = &mut active.queue;
        loop {
            chain::hush(queue, mem)?;
            // Without a free slot the next completion brings us back here.
            while !self.free.is_empty() {
                if most == 0 {
                    return Ok(true);
                }
                most -= 1;
                let Some(chain) = chain::pop(queue, mem)? else {
                    break;
                };
                let head = chain.head_index();
                self.parts.gather(chain, mem, SEGMENTS_MAX)?;
                let request = request::parse(&mut self.parts, mem, &self.limits)?;
                if !self.throttle.admits(self.data_len(request.action)) {
                    chain::put_back(queue);
                    return Ok(false);
                }
                let (status, written) = match request.action {
                    Ok(Action::Disk(op)) => {
                        match self.begin(at, head, request.status_at, op, mem) {
                            Begun::InFlight => continue,
                            Begun::Nothing => (Status::Ok, 0),
                            Begun::Failed => (Status::IoError, 0),
                        }
                    }
                    Ok(Action::Identify) => (
                        Status::Ok,
                        self.parts.writable.write(mem, &self.serial) as u32,
                    ),
                    Err(status) => {
                        self.counters.refused.count();
                        (status, 0)
                    }
                };
                answer(queue, mem, head, request.status_at, status, written)?;
            }
            if self.free.is_empty() || !chain::listen(queue, mem)? {
                return Ok(false);
            }
        }
    }

    /// How many bytes a request moves. What frees or zeroes a range moves none.
    fn data_len(&self, action: Result<Action, Status>) -> u64 {
        match action {
            Ok(Action::Disk(DiskOp::Read { .. })) => self.parts.writable.len(),
            Ok(Action::Disk(DiskOp::Write { .. })) => self.parts.readable.len(),
            _ => 0,
        }
    }

    fn begin(
        &mut self,
        queue: usize,
        head: u16,
        status_at: GuestAddress,
        op: DiskOp,
        mem: &GuestMemory,
    ) -> Begun {
        let data = match op {
            DiskOp::Read { .. } => Some(&self.parts.writable),
            DiskOp::Write { .. } => Some(&self.parts.readable),
            DiskOp::Discard { len: 0, .. } | DiskOp::WriteZeroes { len: 0, .. } => {
                return Begun::Nothing;
            }
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => None,
        };
        let Some(index) = self.free.pop() else {
            return Begun::Failed;
        };
        let slot = &mut self.slots[index];
        slot.queue = queue;
        slot.head = head;
        slot.status_at = status_at;
        slot.op = op;
        slot.moved = 0;
        slot.left = 0;
        slot.buffers.clear();
        if let Some(data) = data {
            slot.left = data.len();
            if slot.left == 0 || !data.host_buffers(mem, &mut slot.buffers) {
                let nothing = slot.left == 0;
                self.free.push(index);
                return if nothing {
                    Begun::Nothing
                } else {
                    Begun::Failed
                };
            }
        }
        if self.submit(index) {
            Begun::InFlight
        } else {
            self.free.push(index);
            Begun::Failed
        }
    }

    fn submit(&mut self, index: usize) -> bool {
        let slot = &self.slots[index];
        // SAFETY: the buffers are guest memory, which is mapped for as long as the machine lives and thus longer than
        // this thread, and which this thread holds an `Arc` of. The slot is not touched before its completion: it is not
        // free, `slots` is resized only while nothing is in flight, and `drain` waits for that.
        let submitted = unsafe { self.backend.submit(index as u64, slot.op, &slot.buffers) };
        if submitted.is_err() {
            self.counters.errors.count();
        }
        submitted.is_ok()
    }

    /// Answers every request that is over.
    fn complete(
        &mut self,
        queues: &mut [ActiveQueue],
        mem: &GuestMemory,
    ) -> Result<(), BrokenQueue> {
        let Self {
            backend,
            slots,
            again,
            over,
            ..
        } = self;
        backend.complete(&mut |token, result| {
            let Some(slot) = usize::try_from(token)
                .ok()
                .and_then(|index| slots.get_mut(index))
            else {
                return;
            };
            let index = token as usize;
            match slot.after(result) {
                None => again.push(index),
                Some(status) => over.push_back((index, status)),
            }
        });
        while let Some(index) = self.again.pop() {
            if !self.submit(index) {
                self.over.push_back((index, Status::IoError));
            }
        }
        while let Some((index, status)) = self.over.pop_front() {
            let slot = &self.slots[index];
            self.count(slot, status);
            let written = match slot.op {
                DiskOp::Read { .. } => u32::try_from(slot.moved).unwrap_or(u32::MAX - 1),
                _ => 0,
            };
            let (head, status_at, queue) = (slot.head, slot.status_at, slot.queue);
            self.free.push(index);
            if let Some(active) = queues.get_mut(queue) {
                answer(&mut active.queue, mem, head, status_at, status, written)?;
            }
        }
        Ok(())
    }

    fn count(&self, slot: &Slot, status: Status) {
        let counters = &self.counters;
        match (status, slot.op) {
            (Status::IoError, _) => counters.errors.count(),
            (Status::Unsupported, _) => counters.refused.count(),
            (Status::Ok, DiskOp::Read { .. }) => {
                counters.reads.count();
                counters.read_bytes.add(slot.moved);
            }
            (Status::Ok, DiskOp::Write { .. }) => {
                counters.writes.count();
                counters.write_bytes.add(slot.moved);
            }
            (Status::Ok, DiskOp::Flush) => counters.flushes.count(),
            (Status::Ok, DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. }) => {
                counters.discards.count()
            }
        }
    }

    /// Waits until nothing is in flight any more. Nothing new is begun.
    pub(super) fn drain(&mut self, activation: &mut Activation) {
        loop {
            // The queues may be what is broken: what cannot be answered then is over all the same.
            let answered = self
                .complete(&mut activation.queues, &activation.mem)
                .is_ok();
            if self.free.len() == self.slots.len() {
                break;
            }
            if !answered {
                continue;
            }
            let _ = self.backend.commit();
            if self.backend.wait().is_err() {
                // The kernel still has our addresses, so there is nothing to do but to ask again.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for active in &mut activation.queues {
            if chain::wants_interrupt(&mut active.queue, &activation.mem).unwrap_or(false) {
                activation.interrupt.signal_queue(active.index);
            }
        }
    }
}

#[cfg(test)]
impl BlockWorker {
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn throttle(&mut self) -> &mut Throttle {
        &mut self.throttle
    }
}

enum Begun {
    InFlight,
    /// There was nothing to do.
    Nothing,
    Failed,
}

impl Slot {
    /// What a completion means: the status if the request is over, nothing if the rest of it is to be submitted.
    fn after(&mut self, result: io::Result<u32>) -> Option<Status> {
        match result {
            Ok(moved) => {
                let moved = u64::from(moved).min(self.left);
                self.moved += moved;
                self.left -= moved;
                if self.left == 0 {
                    return Some(Status::Ok);
                }
                if moved == 0 {
                    // The volume has become shorter than the disk.
                    return Some(Status::IoError);
                }
                IoVec::advance(&mut self.buffers, moved as usize);
                match &mut self.op {
                    DiskOp::Read { offset } | DiskOp::Write { offset } => *offset += moved,
                    DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => {}
                }
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => match &mut self.op {
                // Not every file system can zero a range and keep its space; a hole reads as zeroes too.
                DiskOp::WriteZeroes {
                    unmap: unmap @ false,
                    ..
                } => {
                    *unmap = true;
                    None
                }
                _ => Some(Status::Unsupported),
            },
            Err(_) => Some(Status::IoError),
        }
    }
}

/// Writes the status and gives the chain back.
fn answer(
    queue: &mut virtio_queue::Queue,
    mem: &GuestMemory,
    head: u16,
    status_at: GuestAddress,
    status: Status,
    written: u32,
) -> Result<(), BrokenQueue> {
    mem.write_obj(status as u8, status_at)
        .map_err(|_| BrokenQueue::Outside)?;
    chain::push_used(queue, mem, head, written + 1)
}
