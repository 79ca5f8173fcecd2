//! FAT file systems with our files in them, made without mounting anything: in a file of their own or inside a disk image.

use std::path::Path;

use anyhow::Result;

use crate::tool::{run, tool};

/// A FAT32 file system to be made.
#[derive(Clone, Copy, Debug)]
pub struct Fat<'a> {
    /// The file it lies in; already as long as it has to be.
    pub image: &'a Path,
    /// Where it begins in the file, in bytes: a multiple of 512.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// The volume's label.
    pub label: &'a str,
    /// The volume's serial number.
    pub id: u32,
}

impl Fat<'_> {
    /// Makes the file system.
    pub fn format(&self) -> Result<()> {
        let first = (self.offset / 512).to_string();
        // `--invariant`: no time of day in the volume's label; the serial number it would choose is given after it.
        run(tool("mkfs.vfat")
            .args([
                "--invariant",
                "-F",
                "32",
                "-S",
                "512",
                "-n",
                self.label,
                "-i",
                &format!("{:08x}", self.id),
                "-h",
                &first,
                "--offset",
                &first,
            ])
            .arg(self.image)
            .arg((self.size / 1024).to_string()))?;
        Ok(())
    }

    /// Makes folders, parents first.
    pub fn folders(&self, paths: &[&str]) -> Result<()> {
        run(self
            .mtool("mmd")
            .args(paths.iter().map(|path| format!("::/{path}"))))?;
        Ok(())
    }

    /// Copies a file of the build host into it.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        run(self.mtool("mcopy").arg(from).arg(format!("::/{to}")))?;
        Ok(())
    }

    fn mtool(&self, name: &str) -> std::process::Command {
        let mut command = tool(name);
        // The check against a partition table's geometry makes no sense for an image.
        command.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(format!(
            "{}@@{}",
            self.image.display(),
            self.offset
        ));
        command
    }
}
