//! An image as a disk.
//!
//! Requests are carried out one after the other on the thread that submits them, so each is complete before the next
//! begins: two requests never meet in one cluster.

use std::collections::VecDeque;
use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::image::{Image, ImageError};
use super::pieces::Pieces;
use crate::disk::{Blocks, DiskBackend, DiskOp, IoVec};

/// A qcow2 image behind a disk.
pub struct Qcow2Disk {
    image: Image,
    pieces: Pieces,
    done: VecDeque<(u64, io::Result<u32>)>,
    event: EventFd,
}

impl Qcow2Disk {
    pub(super) fn new(image: Image) -> io::Result<Self> {
        Ok(Self {
            image,
            pieces: Pieces::default(),
            done: VecDeque::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn perform(&mut self, op: DiskOp) -> Result<u32, ImageError> {
        let size = self.image.header.size;
        let moved = match op {
            DiskOp::Read { offset } | DiskOp::Write { offset } => {
                let len = self.pieces.len().min(size.saturating_sub(offset));
                let len = len.min(MOVED_MAX);
                let mut all = std::mem::take(&mut self.pieces);
                all.split_to(len, &mut self.pieces);
                len as u32
            }
            _ => 0,
        };
        let clamp = |offset: u64, len: u64| (offset, len.min(size.saturating_sub(offset)));
        match op {
            DiskOp::Read { offset } => self.image.read(offset, &mut self.pieces)?,
            DiskOp::Write { offset } => self.image.write(offset, &mut self.pieces)?,
            DiskOp::Flush => self.image.commit()?,
            DiskOp::Discard { offset, len } => {
                let (offset, len) = clamp(offset, len);
                self.image.discard(offset, len)?;
            }
            DiskOp::WriteZeroes { offset, len, unmap } => {
                let (offset, len) = clamp(offset, len);
                self.image.write_zeroes(offset, len, unmap)?;
            }
        }
        Ok(moved)
    }
}

/// A multiple of every sector size that fits into a completion.
const MOVED_MAX: u64 = 1 << 30;

fn errno(error: ImageError) -> io::Error {
    match error {
        ImageError::Host(error) | ImageError::Metadata(error) => error,
        ImageError::Unsupported => io::Error::from_raw_os_error(libc::EOPNOTSUPP),
        ImageError::Full => io::Error::from_raw_os_error(libc::ENOSPC),
        ImageError::Corrupt(_) | ImageError::Stopped => io::Error::from_raw_os_error(libc::EIO),
    }
}

impl DiskBackend for Qcow2Disk {
    fn size(&self) -> u64 {
        self.image.header.size
    }

    #[allow(unsafe_code)] // UNSAFETY: the caller's promise is passed on.
    unsafe fn submit(&mut self, token: u64, op: DiskOp, buffers: &[IoVec]) -> io::Result<()> {
        // SAFETY: the caller keeps the buffers valid until completion, which is before `clear`.
        unsafe { self.pieces.load(buffers) };
        let result = self.perform(op).map_err(errno);
        self.pieces.clear();
        self.done.push_back((token, result));
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        if !self.done.is_empty() {
            self.event.write(1)?;
        }
        Ok(())
    }

    fn complete(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) {
        while let Some((token, result)) = self.done.pop_front() {
            done(token, result);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn blocks(&self) -> Blocks {
        let cluster = self.image.header.cluster_size() as u32;
        Blocks {
            discard: cluster.max(512),
            ..Blocks::default()
        }
    }

    fn resize(&mut self, size: u64) -> io::Result<u64> {
        self.image.grow(size).map_err(errno)?;
        Ok(size)
    }

    fn completion_event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        // A guest that was switched off without a flush has no claim on its last writes, but may as well keep them.
        let _ = self.image.commit();
    }
}
