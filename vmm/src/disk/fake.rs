//! A disk in memory that does what a test wants of it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Blocks, DiskBackend, DiskOp, IoVec};

/// What the disk is told to do, and what it has seen; shared with the test.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Contents.
    pub(crate) data: Vec<u8>,
    /// Completions are kept back until somebody waits for them.
    pub(crate) withhold: bool,
    /// Most bytes that one request moves.
    pub(crate) short: Option<usize>,
    /// Errors for the next requests, first one first.
    pub(crate) errors: VecDeque<i32>,
    /// What the disk says that it is made of.
    pub(crate) blocks: Blocks,
    /// Every request that came.
    pub(crate) seen: Vec<DiskOp>,
}

pub(crate) struct FakeDisk {
    script: Arc<Mutex<Script>>,
    ready: VecDeque<(u64, io::Result<u32>)>,
    withheld: VecDeque<(u64, io::Result<u32>)>,
    event: EventFd,
}

impl FakeDisk {
    pub(crate) fn new(size: usize) -> (Self, Arc<Mutex<Script>>) {
        let script = Arc::new(Mutex::new(Script {
            data: vec![0; size],
            ..Script::default()
        }));
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        (
            Self {
                script: script.clone(),
                ready: VecDeque::new(),
                withheld: VecDeque::new(),
                event,
            },
            script,
        )
    }
}

fn perform(script: &mut Script, op: DiskOp, buffers: &[IoVec]) -> io::Result<u32> {
    if let Some(errno) = script.errors.pop_front() {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let Script { data, short, .. } = script;
    let (offset, len) = match op {
        DiskOp::Flush => return Ok(0),
        DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. } => {
            data[offset as usize..(offset + len) as usize].fill(0);
            return Ok(0);
        }
        DiskOp::Read { offset } | DiskOp::Write { offset } => {
            let len: usize = buffers.iter().map(IoVec::len).sum();
            (offset as usize, len.min(short.unwrap_or(len)))
        }
    };
    let Some(disk) = data.get_mut(offset..) else {
        return Ok(0);
    };
    let mut moved = 0;
    for buffer in buffers {
        let here = buffer.len().min(len - moved).min(disk.len() - moved);
        let disk = disk[moved..moved + here].as_mut_ptr();
        let memory = buffer.0.iov_base.cast::<u8>();
        match op {
            // SAFETY: the submitter keeps the buffers mapped until completion, which has not been handed out yet.
            DiskOp::Read { .. } => unsafe { std::ptr::copy_nonoverlapping(disk, memory, here) },
            // SAFETY: as above.
            _ => unsafe { std::ptr::copy_nonoverlapping(memory, disk, here) },
        }
        moved += here;
    }
    Ok(moved as u32)
}

impl DiskBackend for FakeDisk {
    fn size(&self) -> u64 {
        self.script.lock().unwrap().data.len() as u64
    }

    unsafe fn submit(&mut self, token: u64, op: DiskOp, buffers: &[IoVec]) -> io::Result<()> {
        let mut script = self.script.lock().unwrap();
        script.seen.push(op);
        let result = perform(&mut script, op, buffers);
        if script.withhold {
            &mut self.withheld
        } else {
            &mut self.ready
        }
        .push_back((token, result));
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        if !self.ready.is_empty() {
            self.event.write(1)?;
        }
        Ok(())
    }

    fn complete(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) {
        for (token, result) in self.ready.drain(..) {
            done(token, result);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        // One at a time, as a slow disk would.
        self.ready.extend(self.withheld.pop_front());
        Ok(())
    }

    fn resize(&mut self, size: u64) -> io::Result<u64> {
        let mut script = self.script.lock().unwrap();
        if let Some(errno) = script.errors.pop_front() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        script.data.resize(size as usize, 0);
        Ok(size)
    }

    fn blocks(&self) -> Blocks {
        self.script.lock().unwrap().blocks
    }

    fn completion_event(&self) -> &EventFd {
        &self.event
    }
}
