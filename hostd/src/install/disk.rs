//! The disk that is written, as the installer sees it: one trait, so that tests can cut the power at any write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::host::read_at::{Device, ReadAt};

/// A disk to install on.
pub trait Disk: ReadAt {
    /// For the programs that make file systems.
    fn path(&self) -> &Path;

    /// Bytes per logical sector.
    fn sector(&self) -> u64;

    /// Writes all of it.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written before is on the medium.
    fn sync(&self) -> io::Result<()>;

    /// Reads from the medium, not from a cache.
    fn read_back(&self) -> io::Result<Box<dyn ReadAt + '_>>;

    /// Runs a program that makes a file system on [`Disk::path`].
    fn run(&self, program: &str, arguments: &[String]) -> io::Result<std::process::Output> {
        std::process::Command::new(program).args(arguments).output()
    }
}

/// A block device, or a file that stands for one.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    device: Device,
    writer: File,
    sector: u64,
}

impl RealDisk {
    /// Opens it for writing.
    pub fn open(path: &Path, sector: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            device: Device::open(path)?,
            writer: OpenOptions::new().write(true).open(path)?,
            sector,
        })
    }
}

/// Nobody else has it: a mounted file system, LVM, RAID and swap hold their disks exclusively, and the kernel then
/// refuses an exclusive open. Means nothing for files.
pub fn is_free(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path)
        .map(drop)
}

impl ReadAt for RealDisk {
    fn len(&self) -> u64 {
        self.device.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buf)
    }
}

impl Disk for RealDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.writer.sync_all()
    }

    fn read_back(&self) -> io::Result<Box<dyn ReadAt + '_>> {
        self.sync()?;
        // What is clean is dropped; and where the device can, the cache is not asked at all.
        let _ = rustix::fs::fadvise(&self.writer, 0, None, rustix::fs::Advice::DontNeed);
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&self.path);
        match direct {
            Ok(file) => Ok(Box::new(Direct {
                file,
                len: self.len(),
            })),
            Err(_) => Ok(Box::new(Device::open(&self.path)?)),
        }
    }
}

/// Reads past the page cache: offsets, lengths and memory in multiples of the largest sector size.
struct Direct {
    file: File,
    len: u64,
}

const BLOCK: usize = 4096;

impl ReadAt for Direct {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = offset - offset % BLOCK as u64;
        let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
        let len = (skip + buf.len()).next_multiple_of(BLOCK);
        let mut memory = vec![0u8; len + BLOCK];
        let align = memory.as_ptr().align_offset(BLOCK);
        let aligned = memory
            .get_mut(align..align + len)
            .ok_or_else(|| io::Error::other("could not align memory"))?;
        let mut done = 0;
        while done < skip + buf.len() {
            match self
                .file
                .read_at(&mut aligned[done..], start + done as u64)?
            {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Only the end of the device gives a part that is no multiple, and then all is there.
                got => done += got,
            }
        }
        buf.copy_from_slice(&aligned[skip..skip + buf.len()]);
        Ok(())
    }
}
