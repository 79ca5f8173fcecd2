//! A small `newc` archive: what a guest of ours starts from, or what is laid over the product's own initramfs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive being written, entry by entry.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

impl Initramfs {
    /// Adds a folder; its parents must have been added before.
    pub fn dir(&mut self, path: &str) -> Result<()> {
        self.entry(path, ModeFileType::Directory, 0o755, &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, ModeFileType::Regular, mode, content)
    }

    /// Adds a copy of a file of this machine.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, mode, &content)
    }

    /// Adds `/dev/console`, without which the kernel gives PID 1 no output.
    pub fn console(&mut self) -> Result<()> {
        self.entries += 1;
        let builder = Builder::new("dev/console")
            .ino(self.entries)
            .mode(0o600)
            .set_mode_file_type(ModeFileType::Char)
            .rdev_major(5)
            .rdev_minor(1);
        builder.write(&mut self.bytes, 0).finish()?;
        Ok(())
    }

    /// The whole archive, padded to a multiple of 512 bytes so that another may follow it.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        let padded = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(padded, 0);
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> Result<()> {
        use std::io::Write;
        self.entries += 1;
        let size = u32::try_from(content.len()).context("too large for an initramfs")?;
        let mut writer = Builder::new(path)
            .ino(self.entries)
            .mode(mode)
            .set_mode_file_type(kind)
            .nlink(1)
            .write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}
