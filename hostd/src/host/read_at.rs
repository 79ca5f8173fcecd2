//! Reading at an offset: a disk, a partition inside it, a file inside a file system inside that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that can be read anywhere.
pub trait ReadAt {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`; short is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` bytes from `offset`.
    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A file or block device, opened for reading.
#[derive(Debug)]
pub struct Device {
    file: File,
    len: u64,
}

impl Device {
    /// Opens it and asks for its length; block devices answer a seek to their end.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }
}

impl ReadAt for Device {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// A stretch of something readable, for instance a partition.
pub struct Window<'a> {
    inner: &'a dyn ReadAt,
    start: u64,
    len: u64,
}

impl<'a> Window<'a> {
    /// From `start`, `len` bytes, cut at the end of what is there.
    pub fn new(inner: &'a dyn ReadAt, start: u64, len: u64) -> Self {
        let start = start.min(inner.len());
        let len = len.min(inner.len() - start);
        Self { inner, start, len }
    }

    /// Where it begins in what it is a part of.
    pub fn start(&self) -> u64 {
        self.start
    }
}

impl ReadAt for Window<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inner.read_at(self.start + offset, buf)
    }
}

/// A file that lies in pieces: `(offset, length)` in order.
pub struct Pieces<'a> {
    inner: &'a dyn ReadAt,
    pieces: Vec<(u64, u64)>,
    len: u64,
}

impl<'a> Pieces<'a> {
    /// The pieces, together.
    pub fn new(inner: &'a dyn ReadAt, pieces: Vec<(u64, u64)>) -> Self {
        let len = pieces.iter().map(|(_, len)| len).sum();
        Self { inner, pieces, len }
    }

    /// Where they lie.
    pub fn pieces(&self) -> &[(u64, u64)] {
        &self.pieces
    }
}

impl ReadAt for Pieces<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut skip = offset;
        let mut done = 0;
        for (start, len) in &self.pieces {
            if skip >= *len {
                skip -= len;
                continue;
            }
            let take = usize::try_from(len - skip)
                .unwrap_or(usize::MAX)
                .min(buf.len() - done);
            self.inner
                .read_at(start + skip, &mut buf[done..done + take])?;
            skip = 0;
            done += take;
            if done == buf.len() {
                return Ok(());
            }
        }
        if done == buf.len() {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let from = start
            .checked_add(buf.len())
            .and_then(|end| self.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_one_and_never_past_the_end() {
        let bytes: Vec<u8> = (0..=255).collect();
        let pieces = Pieces::new(&bytes, vec![(10, 3), (100, 2), (50, 5)]);
        assert_eq!(
            pieces.read_vec(0, 10).unwrap(),
            [10, 11, 12, 100, 101, 50, 51, 52, 53, 54]
        );
        assert_eq!(pieces.read_vec(2, 3).unwrap(), [12, 100, 101]);
        assert!(pieces.read_vec(8, 3).is_err());
        let window = Window::new(&bytes, 250, 100);
        assert_eq!(window.len(), 6);
        assert!(window.read_vec(5, 2).is_err());
    }
}
