//! The file an image lies in.

#![allow(unsafe_code)] // UNSAFETY: preadv and pwritev on the addresses in `Pieces`.

use std::io;

use super::pieces::Pieces;
use crate::disk::IoVec;
use crate::disk::raw::RawFile;

/// A file, or what a test takes for one. Calls complete before they return.
pub(super) trait Storage: Send {
    /// The end of what was ever written.
    fn end(&self) -> u64;

    /// Whether a write may go beyond [`Self::end`], and the gap then reads as zeroes.
    fn grows(&self) -> bool;

    /// Reads all of `pieces`; what is beyond the end reads as zeroes.
    fn read(&self, offset: u64, pieces: &Pieces) -> io::Result<()>;

    /// Writes all of `pieces`.
    fn write(&mut self, offset: u64, pieces: &Pieces) -> io::Result<()>;

    /// Makes everything that was written durable.
    fn flush(&mut self) -> io::Result<()>;

    /// Gives space back; what is read there afterwards is zeroes or what was there before.
    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

impl dyn Storage + '_ {
    /// Reads bytes of our own.
    pub(super) fn read_bytes(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        Pieces::over(bytes, |pieces| self.read(offset, pieces))
    }

    /// Writes bytes of our own.
    pub(super) fn write_bytes(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        Pieces::over(bytes, |pieces| self.write(offset, pieces))
    }

    /// Writes zeroes.
    pub(super) fn write_zeroes(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut zeroes = vec![0; len.min(ZEROES_AT_ONCE) as usize];
        let mut done = 0;
        while done < len {
            let here = (len - done).min(ZEROES_AT_ONCE);
            self.write_bytes(offset + done, &mut zeroes[..here as usize])?;
            done += here;
        }
        Ok(())
    }
}

const ZEROES_AT_ONCE: u64 = 64 << 10;
/// Most buffers of one system call (IOV_MAX).
const BUFFERS_MAX: usize = 1024;

/// A regular file or a block device.
pub(super) struct FileStorage {
    file: RawFile,
    end: u64,
}

impl FileStorage {
    pub(super) fn new(file: RawFile) -> Self {
        let end = file.size();
        Self { file, end }
    }

    /// Moves all of `pieces`; less only where the file ends.
    fn transfer(
        &self,
        offset: u64,
        pieces: &Pieces,
        call: unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<u64> {
        let mut rest: Option<Vec<IoVec>> = None;
        let mut done = 0;
        while done < pieces.len() {
            let list = rest.as_deref().unwrap_or(pieces.list());
            let count = list.len().min(BUFFERS_MAX) as i32;
            let at = i64::try_from(offset + done).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: what `Pieces` holds is mapped, see there; the descriptor is open.
            let moved = unsafe { call(self.file.fd(), IoVec::as_raw(list), count, at) };
            match usize::try_from(moved) {
                Ok(0) => break,
                Ok(moved) => {
                    done += moved as u64;
                    if done < pieces.len() {
                        IoVec::advance(rest.get_or_insert_with(|| pieces.list().to_vec()), moved);
                    }
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(done)
    }
}

impl Storage for FileStorage {
    fn end(&self) -> u64 {
        self.end
    }

    fn grows(&self) -> bool {
        self.file.grows()
    }

    fn read(&self, offset: u64, pieces: &Pieces) -> io::Result<()> {
        let done = self.transfer(offset, pieces, libc::preadv)?;
        if done < pieces.len() {
            pieces.zero_from(done);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, pieces: &Pieces) -> io::Result<()> {
        let done = self.transfer(offset, pieces, libc::pwritev)?;
        self.end = self.end.max(offset + done);
        if done < pieces.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // SAFETY: takes no addresses.
        match unsafe { libc::fdatasync(self.file.fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes no addresses.
        match unsafe { libc::fallocate(self.file.fd(), mode, offset as i64, len as i64) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
