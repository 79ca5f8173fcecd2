//! A disk that grows while it is in use.
//!
//! ```text
//!   supervisor: the volume is longer now ──► Resizer ──► worker: backend, limits, capacity, interrupt ──► the driver looks
//!                                               ◄──────── the new size ────────┘
//! ```

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::worker::Bell;

/// Why a disk did not grow.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It would lose what is beyond.
    #[error("the disk has {have} bytes; it can only grow")]
    Smaller {
        /// As it is.
        have: u64,
    },
    /// The size is no multiple of its block.
    #[error("the disk is made of blocks of {block} bytes")]
    Blocks {
        /// Their size.
        block: u64,
    },
    /// The volume could not be used at that size.
    #[error("the volume cannot be used at that size")]
    Backend(#[source] io::Error),
    /// Its worker stands still, or is slow: it has failed and waits for a reset, or the host is.
    #[error("the disk's worker did not answer")]
    Silent,
}

/// A size that is wanted, and who waits for the answer.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) size: u64,
    answer: Sender<Result<u64, ResizeError>>,
}

impl Wanted {
    pub(super) fn answer(self, result: Result<u64, ResizeError>) {
        // Nobody hears it who has stopped waiting.
        let _ = self.answer.send(result);
    }
}

/// What a disk, its worker and its resizers share.
#[derive(Debug)]
pub(super) struct Size {
    /// In bytes: what the driver reads.
    now: AtomicU64,
    wanted: Mutex<Option<Wanted>>,
    /// Readable while something is wanted; for a worker that serves queues.
    pub(super) event: EventFd,
}

impl Size {
    pub(super) fn new(size: u64) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            now: AtomicU64::new(size),
            wanted: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        }))
    }

    pub(super) fn get(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, size: u64) {
        self.now.store(size, Ordering::Release);
    }

    pub(super) fn take_wanted(&self) -> Option<Wanted> {
        let _ = self.event.read();
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A disk's other end: says that its volume has grown.
#[derive(Debug, Clone)]
pub struct Resizer {
    pub(super) size: Arc<Size>,
    /// For a worker without queues.
    pub(super) bell: Bell,
}

impl Resizer {
    /// Gives the disk this size; the volume has it already. The driver is told. Returns what the disk has then.
    pub fn resize(&self, size: u64, within: Duration) -> Result<u64, ResizeError> {
        let (answer, answered) = channel();
        let wanted = || {
            let wanted = self.size.wanted.lock();
            wanted.unwrap_or_else(PoisonError::into_inner)
        };
        *wanted() = Some(Wanted { size, answer });
        // Cannot fail: it would take 2^64 of them.
        let _ = self.size.event.write(1);
        if !self.bell.ring() {
            *wanted() = None;
        }
        answered.recv_timeout(within).unwrap_or_else(|_| {
            // Not to be done later, when nobody expects it any more.
            *wanted() = None;
            Err(ResizeError::Silent)
        })
    }
}
