//! An image read from front to back, without a guest: what a raw volume is filled with.

use std::os::fd::OwnedFd;

use super::image::{Image, ImageError};
use super::pieces::Pieces;
use super::storage::{FileStorage, Storage};
use super::transfer::Extent;
use super::{OpenQcow2Error, buffered};
use crate::disk::Access;
use crate::disk::raw::RawFile;

/// What is read at once.
const BUFFER_BYTES: u64 = 1 << 20;

/// An image's content could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadQcow2Error {
    /// Its file.
    #[error("could not read the image")]
    Read(#[from] std::io::Error),
    /// It contradicts itself.
    #[error("the image is damaged: {what}")]
    Corrupt {
        /// How.
        what: &'static str,
    },
}

impl From<ImageError> for ReadQcow2Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Host(error) | ImageError::Metadata(error) => Self::Read(error),
            ImageError::Corrupt(what) => Self::Corrupt { what },
            // Answers to writes, of which there are none.
            ImageError::Full | ImageError::Unsupported | ImageError::Stopped => {
                Self::Read(std::io::ErrorKind::Unsupported.into())
            }
        }
    }
}

/// The descriptor of an image. Nothing of its content has been looked at yet: between this and [`Self::open`] is the
/// time to lock oneself in.
pub struct ImageFile(RawFile);

impl ImageFile {
    /// Examines the descriptor.
    pub fn new(fd: OwnedFd) -> Result<Self, OpenQcow2Error> {
        Ok(Self(buffered(RawFile::new(fd, Access::ReadOnly)?)?))
    }

    /// Reads the header and tables. An image that needs another file is refused.
    pub fn open(self) -> Result<Reader, OpenQcow2Error> {
        Reader::over(Box::new(FileStorage::new(self.0)))
    }
}

/// A complete image, open for reading. Its memory is bounded, whatever the image says.
pub struct Reader {
    image: Image,
    buffer: Vec<u8>,
}

/// A piece of the disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Stretch<'a> {
    /// So many bytes that read as zeroes.
    Zeroes(u64),
    /// Bytes, at least one.
    Bytes(&'a [u8]),
}

impl Reader {
    pub(super) fn over(storage: Box<dyn Storage>) -> Result<Self, OpenQcow2Error> {
        let image = Image::open(storage, Access::ReadOnly, None, 0)?;
        let buffer = vec![0; BUFFER_BYTES as usize];
        Ok(Self { image, buffer })
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.image.header.size
    }

    /// What the disk holds from `offset` on; `None` at its end.
    pub fn at(&mut self, offset: u64) -> Result<Option<Stretch<'_>>, ReadQcow2Error> {
        let left = self.size().saturating_sub(offset);
        if left == 0 {
            return Ok(None);
        }
        let unmapped = self.image.unmapped(offset).min(left);
        if unmapped > 0 {
            return Ok(Some(Stretch::Zeroes(unmapped)));
        }
        let (extent, len) = self.image.extent(offset, left.min(BUFFER_BYTES))?;
        match extent {
            Extent::Zero | Extent::Below => Ok(Some(Stretch::Zeroes(len))),
            Extent::At(_) | Extent::Compressed { .. } => {
                let bytes = &mut self.buffer[..len as usize];
                Pieces::over(bytes, |pieces| self.image.read(offset, pieces))?;
                Ok(Some(Stretch::Bytes(bytes)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::Command;

    /// The whole disk, and how much of it was told to be zeroes.
    fn all(reader: &mut Reader) -> (Vec<u8>, u64) {
        let (mut bytes, mut zeroes) = (Vec::new(), 0);
        while let Some(stretch) = reader.at(bytes.len() as u64).unwrap() {
            match stretch {
                Stretch::Zeroes(len) => {
                    zeroes += len;
                    bytes.resize(bytes.len() + len as usize, 0);
                }
                Stretch::Bytes(more) => bytes.extend_from_slice(more),
            }
        }
        (bytes, zeroes)
    }

    #[test]
    fn every_kind_of_image_that_qemu_makes_is_read_whole_and_its_holes_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // Noise, a hole, repetition, a hole, and an end that is no whole cluster.
        let mut disk = vec![0; (9 << 20) + 512];
        let mut noise = 1_u32;
        for byte in &mut disk[..3 << 20] {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (noise >> 24) as u8;
        }
        disk[5 << 20..6 << 20].fill(7);
        disk[9 << 20..].fill(9);
        std::fs::write(path("raw"), &disk).unwrap();
        for options in [
            "",
            "-c",
            "-o compat=0.10",
            "-o cluster_size=512",
            "-o cluster_size=2M -c",
            "-o refcount_bits=64,lazy_refcounts=on",
            "-o preallocation=metadata",
        ] {
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
            convert.args(options.split_whitespace());
            match convert.arg(path("raw")).arg(path("image")).output() {
                Ok(done) => assert!(done.status.success(), "{options}: {done:?}"),
                Err(error) => {
                    println!("SKIP: qemu-img does not run: {error}");
                    return;
                }
            }
            let image = File::open(path("image")).unwrap();
            let mut reader = ImageFile::new(image.into()).unwrap().open().unwrap();
            assert_eq!(reader.size(), disk.len() as u64);
            let (bytes, zeroes) = all(&mut reader);
            assert!(bytes == disk, "{options}: other bytes");
            let told = zeroes >= 2 << 20;
            assert_eq!(
                told,
                !options.contains("preallocation"),
                "{options}: {zeroes}"
            );
        }
    }

    #[test]
    fn an_overlay_is_refused_and_its_file_is_not_looked_for() {
        let mut bytes = crate::disk::qcow2::crash::empty_image(16, 1 << 20, 4);
        bytes[8..16].copy_from_slice(&512_u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&11_u32.to_be_bytes());
        bytes[512..523].copy_from_slice(b"/etc/shadow");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlay");
        std::fs::write(&path, bytes).unwrap();
        let file = ImageFile::new(File::open(path).unwrap().into()).unwrap();
        assert!(matches!(
            file.open().map(drop),
            Err(OpenQcow2Error::BackingMissing { depth: 0 })
        ));
    }
}
