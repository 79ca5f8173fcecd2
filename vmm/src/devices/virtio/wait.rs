//! Waiting for several descriptors at once: what a worker thread does most of the time.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Most events that one wait brings; further ones come with the next.
const BATCH: usize = 16;

/// How a descriptor that is readable makes itself known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// As long as it is readable: for eventfds, which are emptied at once.
    Level,
    /// When something arrives: for descriptors that are read only when there is room.
    Edge,
}

/// A set of descriptors, each with a token.
#[derive(Debug)]
pub struct Waiter {
    epoll: Epoll,
    events: [EpollEvent; BATCH],
}

impl Waiter {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            events: [EpollEvent::default(); BATCH],
        })
    }

    /// Adds a descriptor. It leaves the set when it is closed.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, trigger: Trigger) -> io::Result<()> {
        let events = match trigger {
            Trigger::Level => EventSet::IN,
            Trigger::Edge => EventSet::IN | EventSet::EDGE_TRIGGERED,
        };
        self.epoll.ctl(
            ControlOperation::Add,
            fd.as_raw_fd(),
            EpollEvent::new(events, token),
        )
    }

    /// Waits until something is readable and gives the tokens.
    pub fn wait(&mut self) -> io::Result<impl Iterator<Item = u64> + '_> {
        self.wait_for(-1)
    }

    /// Gives the tokens of what is readable now.
    pub fn look(&mut self) -> io::Result<impl Iterator<Item = u64> + '_> {
        self.wait_for(0)
    }

    fn wait_for(&mut self, timeout_ms: i32) -> io::Result<impl Iterator<Item = u64> + '_> {
        let count = loop {
            match self.epoll.wait(timeout_ms, &mut self.events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        Ok(self.events[..count].iter().map(|event| event.data()))
    }
}
