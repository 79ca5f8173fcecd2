//! epoll, thinly: the machine's one event loop waits here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

/// Events taken in one go.
const BATCH: usize = 32;

/// A bell between threads. Clones are the same bell.
#[derive(Debug, Clone)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// A silent bell.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?)))
    }

    /// Rings. Several rings before the next [`Self::clear`] are one.
    pub fn ring(&self) {
        // The one failure is a counter at its maximum, which is ringing already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Silences it and says whether it had rung.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0u8; 8]).is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Says whose event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A part that exists once.
    Part(u32),
    /// A connection of the control socket.
    Control(u32),
    /// A connection of the serial socket.
    Serial(u32),
}

impl Token {
    fn to_data(self) -> EventData {
        let (kind, id) = match self {
            Self::Part(id) => (0, id),
            Self::Control(id) => (1, id),
            Self::Serial(id) => (2, id),
        };
        EventData::new_u64(kind << 32 | u64::from(id))
    }

    fn from_data(data: EventData) -> Self {
        let id = data.u64() as u32;
        match data.u64() >> 32 {
            0 => Self::Part(id),
            1 => Self::Control(id),
            _ => Self::Serial(id),
        }
    }
}

/// What is waited for. A hang-up is always reported, as readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Something to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

impl Interest {
    /// Only input.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// Something happened.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Whose.
    pub token: Token,
    /// There is something to read, or the other side is gone.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
}

/// The set of descriptors waited for, level triggered.
pub struct EventLoop {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl EventLoop {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Adds a descriptor.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            token.to_data(),
            interest.flags(),
        )?)
    }

    /// Changes what is waited for.
    pub fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            token.to_data(),
            interest.flags(),
        )?)
    }

    /// Takes a descriptor out; closing the only copy of it does the same.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for events, or `timeout`; a signal ends the wait early with nothing.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Ready>> {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = self.events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                token: Token::from_data(event.data),
                read: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
                write: flags.contains(EventFlags::OUT),
            }
        });
        Ok(ready.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_their_token_and_timeouts_end() {
        let mut events = EventLoop::new().unwrap();
        let bell = Wake::new().unwrap();
        events.add(&bell, Token::Serial(7), Interest::READ).unwrap();
        assert!(
            events
                .wait(Some(Duration::from_millis(1)))
                .unwrap()
                .is_empty()
        );
        bell.clone().ring();
        bell.ring();
        let ready = events.wait(None).unwrap();
        assert_eq!(ready.len(), 1);
        assert_eq!(ready[0].token, Token::Serial(7));
        assert!(ready[0].read && !ready[0].write);
        assert!(bell.clear());
        assert!(!bell.clear());
    }
}
