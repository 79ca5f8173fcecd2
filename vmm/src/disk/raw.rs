//! Raw files and block devices: offset on the disk is offset in the file.

#![allow(unsafe_code)] // UNSAFETY: preadv and pwritev on addresses in guest memory; see `DiskBackend::submit`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Access, Blocks, DiskBackend, DiskOp, IoVec};

/// A volume's descriptor cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenRawError {
    /// Neither a regular file nor a block device.
    #[error("a volume must be a regular file or a block device")]
    NotAVolume,
    /// A writable disk needs a descriptor that is.
    #[error("the volume is not open for writing")]
    NotWritable,
    /// Blocks of a size that no driver expects.
    #[error("the volume has blocks of {bytes} bytes; 512 and 4096 are supported")]
    BlockSize {
        /// As the device says.
        bytes: u32,
    },
    /// The kernel refused.
    #[error("could not examine the volume")]
    Examine(#[from] io::Error),
}

/// A regular file or a block device that is a disk.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size: u64,
    /// A regular file, which a write can make longer.
    grows: bool,
    blocks: Blocks,
}

/// Asks a block device for one of its numbers.
fn ask(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut answer: libc::c_int = 0;
    // SAFETY: these requests write one int, which `answer` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut answer) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Requests to block devices (`linux/fs.h`): logical block, physical block, optimal size.
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPBSZGET: libc::Ioctl = 0x127b;
const BLKIOOPT: libc::Ioctl = 0x1279;

fn device_blocks(file: &File) -> io::Result<Blocks> {
    let logical = ask(file, BLKSSZGET)?;
    let physical = ask(file, BLKPBSZGET)?.clamp(logical, 1 << 20);
    Ok(Blocks {
        logical,
        physical: 1 << physical.ilog2(),
        optimal: ask(file, BLKIOOPT)?,
        discard: physical.max(4096),
    })
}

impl RawFile {
    /// Examines an open descriptor.
    pub fn new(fd: OwnedFd, access: Access) -> Result<Self, OpenRawError> {
        use std::os::unix::fs::FileTypeExt;
        let mut file = File::from(fd);
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenRawError::NotAVolume);
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(io::Error::from)?;
        if access == Access::ReadWrite
            && flags & rustix::fs::OFlags::ACCMODE != rustix::fs::OFlags::RDWR
        {
            return Err(OpenRawError::NotWritable);
        }
        let size = file.seek(SeekFrom::End(0))?;
        let blocks = if kind.is_file() {
            Blocks::default()
        } else {
            device_blocks(&file)?
        };
        if !matches!(blocks.logical, 512 | 4096) {
            return Err(OpenRawError::BlockSize {
                bytes: blocks.logical,
            });
        }
        Ok(Self {
            file,
            size,
            grows: kind.is_file(),
            blocks,
        })
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Looks how large it is now. It is to be `size`, so it may be longer but not shorter than that.
    pub fn resize(&mut self, size: u64) -> io::Result<u64> {
        let there = self.file.seek(SeekFrom::End(0))?;
        if size < self.size || there < size {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.size = size;
        Ok(size)
    }

    /// Which blocks it is made of.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Whether a write behind its end makes it longer.
    pub fn grows(&self) -> bool {
        self.grows
    }

    /// The same for two descriptors of one file or device.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        let metadata = self.file.metadata()?;
        Ok(match self.grows {
            true => (metadata.dev(), metadata.ino()),
            false => (u64::MAX, metadata.rdev()),
        })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The descriptor's number.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// How `fallocate` is asked for an operation, if it is one for it.
pub(super) fn fallocate_mode(op: DiskOp) -> Option<(i32, u64, u64)> {
    match op {
        DiskOp::Read { .. } | DiskOp::Write { .. } | DiskOp::Flush => None,
        DiskOp::Discard { offset, len }
        | DiskOp::WriteZeroes {
            offset,
            len,
            unmap: true,
        } => Some((
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        )),
        DiskOp::WriteZeroes {
            offset,
            len,
            unmap: false,
        } => Some((
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        )),
    }
}

/// Carries requests out one after the other, on the thread that submits them.
#[derive(Debug)]
pub struct BlockingDisk {
    file: RawFile,
    done: VecDeque<(u64, io::Result<u32>)>,
    event: EventFd,
}

impl BlockingDisk {
    /// Over an examined file.
    pub fn new(file: RawFile) -> io::Result<Self> {
        Ok(Self {
            file,
            done: VecDeque::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }
}

impl DiskBackend for BlockingDisk {
    fn size(&self) -> u64 {
        self.file.size()
    }

    unsafe fn submit(&mut self, token: u64, op: DiskOp, buffers: &[IoVec]) -> io::Result<()> {
        let fd = self.file.fd();
        let (iovecs, count) = (IoVec::as_raw(buffers), buffers.len() as i32);
        let result = match (op, fallocate_mode(op)) {
            // SAFETY: the caller keeps the buffers valid until completion, which is at once.
            (DiskOp::Read { offset }, _) => unsafe {
                libc::preadv(fd, iovecs, count, offset as i64)
            },
            // SAFETY: as above.
            (DiskOp::Write { offset }, _) => unsafe {
                libc::pwritev(fd, iovecs, count, offset as i64)
            },
            (_, Some((mode, offset, len))) => {
                // SAFETY: takes no addresses.
                unsafe { libc::fallocate(fd, mode, offset as i64, len as i64) as isize }
            }
            // SAFETY: takes no addresses.
            (_, None) => unsafe { libc::fdatasync(fd) as isize },
        };
        let result = if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result as u32)
        };
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

    fn resize(&mut self, size: u64) -> io::Result<u64> {
        self.file.resize(size)
    }

    fn blocks(&self) -> Blocks {
        self.file.blocks()
    }

    fn completion_event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_block_devices_are_volumes() {
        let (pipe, _) = io::pipe().unwrap();
        assert!(matches!(
            RawFile::new(pipe.into(), Access::ReadOnly),
            Err(OpenRawError::NotAVolume)
        ));
    }

    #[test]
    fn a_writable_disk_needs_a_writable_file() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(1 << 20).unwrap();
        let read_only = || File::open(named.path()).unwrap().into();
        assert!(matches!(
            RawFile::new(read_only(), Access::ReadWrite),
            Err(OpenRawError::NotWritable)
        ));
        assert_eq!(
            RawFile::new(read_only(), Access::ReadOnly).unwrap().size(),
            1 << 20
        );
    }
}
