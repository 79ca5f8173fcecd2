//! The ring that carries a disk's requests to the kernel and their completions back.

#![allow(unsafe_code)] // UNSAFETY: entries of the ring hold addresses; see `DiskBackend::submit`.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::raw::{RawFile, fallocate_mode};
use super::{Blocks, DiskBackend, DiskOp, IoVec};

/// Requests that are handed to the kernel at once. More than that may be in flight.
const ENTRIES: u32 = 128;
/// A raw volume behind an io_uring.
///
/// The file is not registered with the ring: a ring is taken apart in the background, and would hold the file, and with it
/// the volume's lock, for a while after the process has ended.
pub struct UringDisk {
    /// Before the file: a ring that goes away waits for its requests.
    ring: IoUring,
    event: EventFd,
    file: RawFile,
}

impl UringDisk {
    /// A ring of its own for `file`; gives the file back where the kernel refuses one.
    pub fn new(file: RawFile) -> Result<Self, (RawFile, io::Error)> {
        match ring() {
            Ok((ring, event)) => Ok(Self { ring, event, file }),
            Err(error) => Err((file, error)),
        }
    }
}

fn ring() -> io::Result<(IoUring, EventFd)> {
    let ring = IoUring::new(ENTRIES)?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    ring.submitter().register_eventfd(event.as_raw_fd())?;
    Ok((ring, event))
}

fn entry(file: &RawFile, op: DiskOp, buffers: &[IoVec]) -> squeue::Entry {
    let file = types::Fd(file.fd());
    let (iovecs, count) = (IoVec::as_raw(buffers), buffers.len() as u32);
    match (op, fallocate_mode(op)) {
        (DiskOp::Read { offset }, _) => opcode::Readv::new(file, iovecs, count)
            .offset(offset)
            .build(),
        (DiskOp::Write { offset }, _) => opcode::Writev::new(file, iovecs, count)
            .offset(offset)
            .build(),
        (_, Some((mode, offset, len))) => opcode::Fallocate::new(file, len)
            .offset(offset)
            .mode(mode)
            .build(),
        (_, None) => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

impl DiskBackend for UringDisk {
    fn size(&self) -> u64 {
        self.file.size()
    }

    unsafe fn submit(&mut self, token: u64, op: DiskOp, buffers: &[IoVec]) -> io::Result<()> {
        let entry = entry(&self.file, op, buffers).user_data(token);
        // SAFETY: the caller keeps the buffers, and the array that names them, valid until completion.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.commit()?;
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn commit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        loop {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    fn complete(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) {
        for completion in self.ring.completion() {
            let result = completion.result();
            let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            done(completion.user_data(), result);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
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
    use super::super::raw::BlockingDisk;
    use super::super::{Access, open};
    use super::*;
    use std::io::Write;

    fn volume() -> RawFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        RawFile::new(file.into(), Access::ReadWrite).unwrap()
    }

    fn run(disk: &mut dyn DiskBackend, op: DiskOp, buffers: &[IoVec]) -> io::Result<u32> {
        // SAFETY: the buffers outlive the loop below, which ends with the completion.
        unsafe { disk.submit(42, op, buffers) }.unwrap();
        disk.commit().unwrap();
        let mut outcome = None;
        while outcome.is_none() {
            disk.wait().unwrap();
            disk.complete(&mut |token, result| {
                assert_eq!(token, 42);
                outcome = Some(result);
            });
        }
        // The kernel signals it right behind the completion, which another thread may see in between.
        while disk.completion_event().read().is_err() {
            std::thread::yield_now();
        }
        outcome.unwrap()
    }

    /// Every backend is held to the same.
    fn behaves(disk: &mut dyn DiskBackend) {
        let mut data = [1_u8; 1024];
        let buffers = [
            IoVec::new(data.as_mut_ptr(), 512),
            IoVec::new(data[512..].as_mut_ptr(), 512),
        ];
        assert_eq!(disk.size(), 8192);
        assert_eq!(
            run(disk, DiskOp::Write { offset: 4096 }, &buffers).unwrap(),
            1024
        );
        assert_eq!(run(disk, DiskOp::Flush, &[]).unwrap(), 0);
        data.fill(0);
        assert_eq!(
            run(disk, DiskOp::Read { offset: 4096 - 512 }, &buffers).unwrap(),
            1024
        );
        assert_eq!((data[0], data[511], data[512], data[1023]), (7, 7, 1, 1));
        assert_eq!(
            run(disk, DiskOp::Read { offset: 8192 - 512 }, &buffers).unwrap(),
            512,
            "short at the end"
        );
        match run(
            disk,
            DiskOp::Discard {
                offset: 4096,
                len: 4096,
            },
            &[],
        ) {
            Ok(_) => {
                run(disk, DiskOp::Read { offset: 4096 }, &buffers).unwrap();
                assert_eq!(data, [0; 1024]);
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
        assert_eq!(disk.size(), 8192);
    }

    #[test]
    fn blocking_calls_behave() {
        behaves(&mut BlockingDisk::new(volume()).unwrap());
    }

    #[test]
    fn io_uring_behaves() {
        match UringDisk::new(volume()) {
            Ok(mut disk) => behaves(&mut disk),
            Err((_, error)) => println!("skipped: this kernel refuses io_uring: {error}"),
        }
    }

    #[test]
    fn more_requests_than_entries_are_carried() {
        let Ok(mut disk) = UringDisk::new(volume()) else {
            println!("skipped: this kernel refuses io_uring");
            return;
        };
        let mut data = [0_u8; 512];
        let buffers = [IoVec::new(data.as_mut_ptr(), 512)];
        let count = u64::from(ENTRIES) * 3;
        for token in 0..count {
            // SAFETY: the buffers live until all completions are seen.
            unsafe { disk.submit(token, DiskOp::Read { offset: 0 }, &buffers) }.unwrap();
        }
        disk.commit().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < count as usize {
            disk.wait().unwrap();
            disk.complete(&mut |token, result| {
                assert_eq!(result.unwrap(), 512);
                assert!(seen.insert(token));
            });
        }
    }

    #[test]
    fn a_volume_is_free_as_soon_as_its_disk_is_gone() {
        use rustix::fs::{FlockOperation, flock};
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(8192).unwrap();
        let open = || {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(named.path())
                .unwrap()
        };
        for round in 0..20 {
            let file = open();
            flock(&file, FlockOperation::NonBlockingLockExclusive)
                .unwrap_or_else(|errno| panic!("round {round}: {errno}"));
            let file = RawFile::new(file.into(), Access::ReadWrite).unwrap();
            let Ok(mut disk) = UringDisk::new(file) else {
                return println!("skipped: this kernel refuses io_uring");
            };
            let mut data = [1_u8; 512];
            let buffers = [IoVec::new(data.as_mut_ptr(), 512)];
            run(&mut disk, DiskOp::Write { offset: 0 }, &buffers).unwrap();
            assert!(flock(open(), FlockOperation::NonBlockingLockExclusive).is_err());
        }
    }

    #[test]
    fn some_backend_always_opens() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(open(file.into(), Access::ReadWrite).unwrap().size(), 4096);
    }
}
