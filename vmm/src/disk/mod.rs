//! What a disk's bytes rest on.
//!
//! [`DiskBackend`] is what a block device needs: requests go in with a token, completions come out in any order. [`raw`]
//! is files and block devices, carried by [`io_uring`] where the kernel has it; [`qcow2`] is images over the same. A backend knows offsets and bytes; sectors,
//! queues and guests are the block device's.

#![allow(unsafe_code)] // UNSAFETY: the kernel reads and writes guest memory by address while a request is in flight.

use std::io;
use std::os::fd::OwnedFd;

use vmm_sys_util::eventfd::EventFd;

pub mod raw;

pub mod io_uring;

pub mod qcow2;

#[cfg(test)]
pub(crate) mod fake;

use io_uring::UringDisk;
use qcow2::{Format, OpenQcow2Error};
use raw::{BlockingDisk, OpenRawError, RawFile};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// Read into the buffers from this offset on.
    Read {
        /// In bytes from the beginning of the disk.
        offset: u64,
    },
    /// Write the buffers from this offset on.
    Write {
        /// In bytes from the beginning of the disk.
        offset: u64,
    },
    /// Make every write that has completed so far durable.
    Flush,
    /// The contents of this range are not needed any more.
    Discard {
        /// In bytes from the beginning of the disk.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// This range is to read as zeroes.
    WriteZeroes {
        /// In bytes from the beginning of the disk.
        offset: u64,
        /// In bytes.
        len: u64,
        /// Whether the space may be given back.
        unmap: bool,
    },
}

/// Carries out requests. A short read or write is completed as such: the caller asks for the rest.
pub trait DiskBackend: Send {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// Takes a request. It may begin at once, or with [`Self::commit`].
    ///
    /// # Safety
    /// Until the completion with this token has been handed out, the array `buffers` stays where it is, and what its
    /// elements point to stays mapped, readable and (for a read) writable.
    unsafe fn submit(&mut self, token: u64, op: DiskOp, buffers: &[IoVec]) -> io::Result<()>;

    /// Lets everything submitted so far begin.
    fn commit(&mut self) -> io::Result<()>;

    /// Hands out completions: the token, and how many bytes were moved.
    fn complete(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>));

    /// Blocks until there is a completion. Called only while a request is in flight.
    fn wait(&mut self) -> io::Result<()>;

    /// The size is to be `size` from now on; never less than it was. What it is then is what comes back. Called between
    /// submissions; requests may be in flight.
    fn resize(&mut self, size: u64) -> io::Result<u64>;

    /// Which blocks it is made of.
    fn blocks(&self) -> Blocks {
        Blocks::default()
    }

    /// Readable while there may be completions; the caller empties it before it asks for them.
    fn completion_event(&self) -> &EventFd;
}

/// The blocks a disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Requests have to be multiples of this many bytes: 512 or 4096.
    pub logical: u32,
    /// Writes of multiples of this many bytes are done without reading first.
    pub physical: u32,
    /// Requests of this many bytes are best; 0 if nobody knows.
    pub optimal: u32,
    /// Space is given back in multiples of this many bytes.
    pub discard: u32,
}

impl Default for Blocks {
    /// A file's.
    fn default() -> Self {
        Self {
            logical: 512,
            physical: 4096,
            optimal: 0,
            discard: 4096,
        }
    }
}

/// A stretch of guest memory, as the kernel wants it (`struct iovec`).
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

// SAFETY: it is an address and a length; what may be done with them is said where they are used.
unsafe impl Send for IoVec {}

impl IoVec {
    /// `len` bytes from `base` on.
    pub fn new(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The form system calls take.
    pub fn as_raw(buffers: &[Self]) -> *const libc::iovec {
        buffers.as_ptr().cast()
    }

    /// Takes the first `count` bytes away from a list of buffers.
    pub fn advance(buffers: &mut Vec<Self>, mut count: usize) {
        let mut gone = 0;
        for buffer in buffers.iter_mut() {
            if count < buffer.len() {
                buffer.0.iov_base = buffer.0.iov_base.wrapping_byte_add(count);
                buffer.0.iov_len -= count;
                break;
            }
            count -= buffer.len();
            gone += 1;
        }
        buffers.drain(..gone);
    }
}

/// Opens the backend for a raw volume: through io_uring, or, on a kernel that refuses it, by blocking calls.
pub fn open(fd: OwnedFd, access: Access) -> Result<Box<dyn DiskBackend>, OpenRawError> {
    let file = RawFile::new(fd, access)?;
    match UringDisk::new(file) {
        Ok(disk) => Ok(Box::new(disk)),
        Err((file, refused)) => {
            eprintln!(
                "vmm: the kernel refuses io_uring ({refused}): a disk goes by blocking calls, more slowly"
            );
            Ok(Box::new(BlockingDisk::new(file)?))
        }
    }
}

/// A disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// Its volume cannot be used.
    #[error(transparent)]
    Raw(#[from] OpenRawError),
    /// Its image cannot be used.
    #[error(transparent)]
    Qcow2(#[from] OpenQcow2Error),
    /// Something was given to lie below it.
    #[error("a raw volume has nothing below it")]
    RawWithBacking,
}

/// Opens a disk of either format, over what lies `below` it.
pub fn open_as(
    fd: OwnedFd,
    access: Access,
    format: Format,
    below: Vec<(OwnedFd, Format)>,
) -> Result<Box<dyn DiskBackend>, OpenDiskError> {
    match format {
        Format::Raw if below.is_empty() => Ok(open(fd, access)?),
        Format::Raw => Err(OpenDiskError::RawWithBacking),
        Format::Qcow2 => Ok(qcow2::open(fd, access, below)?),
    }
}

/// What a guest may do to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}
