//! qcow2 images, versions 2 and 3, read and write, over a chain of backing images.
//!
//! ```text
//!   guest offset ──► L1 table ──► L2 table ──► cluster of data      (or: reads as zeroes, compressed, not here)
//!                                                     not here ──► the backing image, or zeroes
//!   every cluster of the file ──► refcount table ──► refcount block ──► how often it is referred to
//! ```
//! [`header`] says what the file claims to be; [`cache`] keeps pieces of its tables; [`refcounts`] counts and allocates
//! clusters; [`image`] keeps the mapping and decides what is written in which order; [`transfer`] moves data and
//! [`discard`] gives it up; [`backend`] is the disk, [`reader`] its content without a guest. [`storage`] is the file below, [`pieces`] the guest's memory above,
//! [`inflate`] the compressed clusters.
//!
//! **Power may fail at any write.** Between two flushes the file's writes may reach the medium in any order, or not. So:
//! 1. data, and the refcounts that say that its clusters are taken, are durable before a mapping to them is written;
//! 2. a new L2 table is durable before the L1 entry that leads to it is written, a new refcount block before its entry;
//! 3. a cluster is free for other use only once the mapping that no longer leads to it is durable.
//!
//! What can be lost is space (a cluster counted and not referred to), never what was flushed. Changed tables stay in
//! memory until the guest flushes or the cache is full.
//!
//! **An image may be hostile.** It names no file that we would open: the chain is a list of open descriptors, and what a
//! header says of a backing file is only compared with that list. Every offset is checked when it is read, tables have
//! limits, and nothing is written over the image's own tables. An image found to be inconsistent is written to no more.

use std::io;
use std::os::fd::OwnedFd;

mod header;

mod image;
mod transfer;

mod cache;
mod discard;
mod refcounts;

mod inflate;
mod pieces;
mod storage;

mod backend;
mod reader;

#[cfg(test)]
pub(crate) mod crash;

#[cfg(test)]
mod tests;

use super::raw::{OpenRawError, RawFile};
use super::{Access, DiskBackend};
use backend::Qcow2Disk;
use image::{Image, Source};
pub use reader::{ImageFile, ReadQcow2Error, Reader, Stretch};
use storage::FileStorage;

/// Longest chain of images, the top one included.
pub const CHAIN_MAX: usize = 16;

/// How the bytes of a file are to be understood. Never guessed: a guest could make a raw volume look like an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Offset on the disk is offset in the file.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// An image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenQcow2Error {
    /// The descriptor is no volume.
    #[error(transparent)]
    Volume(#[from] OpenRawError),
    /// It could not be read, or prepared for writing.
    #[error("could not read the image")]
    Read(#[from] io::Error),
    /// The magic number is missing.
    #[error("the volume does not hold a qcow2 image")]
    NotQcow2,
    /// Neither 2 nor 3.
    #[error("qcow2 version {version} is not known")]
    Version {
        /// As claimed.
        version: u32,
    },
    /// Something that was left out on purpose.
    #[error("the image uses {what}, which is not supported")]
    Unsupported {
        /// What it is.
        what: &'static str,
    },
    /// Feature bits nobody may ignore.
    #[error("the image uses incompatible features that are not known: {bits:#x}")]
    UnknownFeatures {
        /// The unknown ones.
        bits: u64,
    },
    /// A number that makes no sense.
    #[error("the image is invalid: {what}")]
    Invalid {
        /// Which.
        what: &'static str,
    },
    /// Its last user did not close it, and refcounts were being kept in memory.
    #[error("the image was not closed properly and has to be repaired before it is written to")]
    Dirty,
    /// Somebody found it to be inconsistent.
    #[error("the image is marked as corrupt and has to be repaired before it is written to")]
    Corrupt,
    /// It is an overlay, and what is below was not given.
    #[error("image {depth} of the chain has a backing file and none was given")]
    BackingMissing {
        /// Place in the chain, 0 is the top.
        depth: usize,
    },
    /// It is complete, or raw, and something was given to lie below.
    #[error("image {depth} of the chain has no backing file and one was given")]
    BackingUnexpected {
        /// Place in the chain, 0 is the top.
        depth: usize,
    },
    /// The same file twice.
    #[error("a file appears twice in the chain")]
    Loop,
    /// Too many images.
    #[error("{length} images in a chain; there may be {CHAIN_MAX}")]
    ChainTooLong {
        /// As given.
        length: usize,
    },
}

/// Opens a chain: the image that is written to, then what lies below, each below the one before it.
pub fn open(
    top: OwnedFd,
    access: Access,
    backing: Vec<(OwnedFd, Format)>,
) -> Result<Box<dyn DiskBackend>, OpenQcow2Error> {
    let length = backing.len() + 1;
    if length > CHAIN_MAX {
        return Err(OpenQcow2Error::ChainTooLong { length });
    }
    let top = buffered(RawFile::new(top, access)?)?;
    let mut seen = vec![top.identity()?];
    let mut below: Option<Box<dyn Source>> = None;
    let mut files = Vec::with_capacity(backing.len());
    for (fd, format) in backing {
        let file = buffered(RawFile::new(fd, Access::ReadOnly)?)?;
        let identity = file.identity()?;
        if seen.contains(&identity) {
            return Err(OpenQcow2Error::Loop);
        }
        seen.push(identity);
        files.push((file, format));
    }
    for (depth, (file, format)) in (1..length).zip(files).rev() {
        let storage = Box::new(FileStorage::new(file));
        below = Some(match (format, below) {
            (Format::Raw, Some(_)) => return Err(OpenQcow2Error::BackingUnexpected { depth }),
            (Format::Raw, None) => storage,
            (Format::Qcow2, below) => {
                Box::new(Image::open(storage, Access::ReadOnly, below, depth)?)
            }
        });
    }
    let image = Image::open(Box::new(FileStorage::new(top)), access, below, 0)?;
    Ok(Box::new(Qcow2Disk::new(image)?))
}

/// Tables are read and written by entries and slices, which O_DIRECT would not allow.
fn buffered(file: RawFile) -> io::Result<RawFile> {
    use rustix::fs::OFlags;
    let flags = rustix::fs::fcntl_getfl(file.file())?;
    if flags.contains(OFlags::DIRECT) {
        rustix::fs::fcntl_setfl(file.file(), flags - OFlags::DIRECT)?;
    }
    Ok(file)
}
